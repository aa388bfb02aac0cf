"use strict";

/* The only script of a report: sortable tables, movable thresholds, galleries and their viewer. All text is set as
   text, never as HTML. */

const TOLERANCE = 1e-6; // as in the package: a score that is lower by rounding alone counts as at the threshold
const BATCH = 48; // tiles made at a time
const KEPT_CHUNKS = 64; // groups of thumbnails kept as parsed data

function make(tag, properties = {}, children = []) {
  const { class: classes, data, attributes, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  if (classes) element.className = classes;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function count(number) {
  return number.toLocaleString("en-US");
}

function percent(part, whole) {
  return whole ? ` (${((100 * part) / whole).toFixed(1)} %)` : "";
}

/* --- sortable tables --- */

function compareValues(a, b) {
  if (a === "" || b === "") return a === b ? 0 : a === "" ? Infinity : -Infinity; // cells without a value stay last
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
}

function sortBy(table, header) {
  const column = [...header.parentNode.children].indexOf(header);
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const each of header.parentNode.children) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const value = (row) => row.children[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const order = compareValues(value(a), value(b));
    return descending && Number.isFinite(order) ? -order : order === Infinity ? 1 : order === -Infinity ? -1 : order;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => sortBy(table, button.closest("th")));
  }
}

/* --- movable thresholds --- */

function describeGroup(name, flagged, total) {
  const share = percent(flagged, total);
  if (name === "normal") return `False alarms: ${count(flagged)} of ${count(total)} normal images${share}`;
  if (name === "anomalous") {
    return `Missed: ${count(total - flagged)} of ${count(total)} anomalous images${percent(total - flagged, total)}`;
  }
  return `Anomalous: ${count(flagged)} of ${count(total)} images${share}; normal: ${count(total - flagged)}`;
}

function setUpThreshold(control) {
  const [slider, number] = control.querySelectorAll("input");
  const { groups, fixed, recorded, start: words } = JSON.parse(control.querySelector("script").textContent);
  const line = document.getElementById(control.dataset.line);
  const start = Number(control.dataset.value);
  const recount = control.querySelector(".recount");

  function flaggedIn(name, value, moved) {
    if (!moved && name in recorded) return recorded[name];
    return groups[name].filter((score) => score >= value - TOLERANCE).length;
  }

  function show(value) {
    const moved = value !== start;
    if (line) {
      const shown = Math.min(Math.max(value, Number(slider.min)), Number(slider.max)); // the line stays in the chart
      line.setAttribute("transform", `translate(${(shown - start) * Number(control.dataset.units)} 0)`);
    }
    const lines = Object.keys(groups).map((name) => {
      const total = groups[name].length + (fixed[name] || 0);
      return make("p", {}, [make("strong", { textContent: describeGroup(name, flaggedIn(name, value, moved), total) })]);
    });
    const origin = moved ? `At the threshold ${value.toPrecision(4)}, moved from ${start.toPrecision(4)}:` : words;
    recount.replaceChildren(make("p", { textContent: origin }), ...lines);
    const detail = { name: control.dataset.threshold, value: moved ? value : null };
    document.dispatchEvent(new CustomEvent("threshold", { detail }));
  }

  slider.addEventListener("input", () => {
    number.value = slider.value;
    show(Number(slider.value));
  });
  number.addEventListener("input", () => {
    const value = number.valueAsNumber;
    if (Number.isNaN(value)) return;
    slider.value = value;
    show(value);
  });
  control.querySelector("button").addEventListener("click", () => {
    slider.value = start;
    number.value = start.toFixed(4);
    show(start);
  });
  if (line) {
    const drawing = control.closest("figure").querySelector(".drawing");
    const place = line.getBBox().x;
    const move = (event) => {
      if (event.buttons !== 1) return;
      const svg = drawing.querySelector("svg");
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const value = start + (point.x - place) / Number(control.dataset.units);
      slider.value = value; // keeps it between the ends
      number.value = slider.valueAsNumber.toFixed(4);
      show(slider.valueAsNumber);
    };
    drawing.classList.add("movable");
    drawing.addEventListener("pointerdown", move);
    drawing.addEventListener("pointermove", move);
  }
  show(start);
}

/* --- galleries --- */

const ORDERS = {
  "Highest score first": (a, b) => (b.score ?? -1) - (a.score ?? -1),
  "Lowest score first": (a, b) => (a.score ?? Infinity) - (b.score ?? Infinity) || 0,
  "Name": (a, b) => a.title.localeCompare(b.title, "en", { numeric: true }),
};
const FILTERS = {
  "Anomalous": (gallery, picture) => gallery.verdict(picture) === "anomalous",
  "Normal": (gallery, picture) => gallery.verdict(picture) === "normal",
  "Without verdict": (gallery, picture) => gallery.verdict(picture) === null,
  "False alarms": (gallery, picture) => picture.truth === "normal" && gallery.verdict(picture) === "anomalous",
  "Missed": (gallery, picture) => picture.truth === "anomalous" && gallery.verdict(picture) === "normal",
  "Failed": (gallery, picture) => gallery.verdict(picture) === "failed",
};

class Gallery {
  constructor(root) {
    this.root = root;
    const outline = JSON.parse(root.querySelector(".outline").textContent);
    this.pictures = outline.pictures.map((picture, index) => ({ facts: [], views: [], index, ...picture }));
    this.chunkSize = outline.chunk;
    this.productTitle = outline.product;
    this.firstView = outline.view;
    this.listed = outline.order;
    this.chunks = root.querySelectorAll("script.pictures");
    this.parsed = new Map();
    this.moved = null;
    this.list = root.querySelector(".tiles");
    this.end = make("div", { attributes: { "aria-hidden": "true" } });
    this.list.after(this.end);
    this.showsControls = root.dataset.controls === "yes" && this.pictures.length > 1;
    if (this.showsControls) this.makeControls();
    this.observer = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && this.addTiles(), {
      rootMargin: "600px",
    });
    this.list.addEventListener("keydown", (event) => this.moveFocus(event));
    this.update();
  }

  verdict(picture) {
    if (picture.failure) return "failed";
    if (this.moved === null || picture.score === undefined) return picture.label || null;
    return !picture.fixed && picture.score >= this.moved - TOLERANCE ? "anomalous" : "normal";
  }

  thumbnails(picture) {
    const number = Math.floor(picture.index / this.chunkSize);
    if (!this.parsed.has(number)) {
      if (this.parsed.size >= KEPT_CHUNKS) this.parsed.delete(this.parsed.keys().next().value);
      this.parsed.set(number, JSON.parse(this.chunks[number].textContent));
    }
    return this.parsed.get(number)[picture.index % this.chunkSize];
  }

  makeControls() {
    const choice = (name, options, values = options) => {
      const option = (text, place) => make("option", { textContent: text, value: values[place] });
      const select = make("select", {}, options.map(option));
      select.addEventListener("change", () => this.update());
      this.controls.append(make("label", { textContent: name }, [select]));
      return select;
    };
    this.controls = this.root.querySelector(".controls");
    const useful = Object.keys(FILTERS).filter((name) => this.isUseful(name));
    this.filter = choice("Show", ["All", ...useful]);
    const products = [...new Set(this.pictures.map((each) => each.product || ""))].sort();
    if (products.length > 1) {
      // "/" before the values: a folder may be called "All", or have no name
      const none = `(no ${this.productTitle.toLowerCase()})`;
      const options = ["All", ...products.map((each) => each || none)];
      this.product = choice(this.productTitle, options, ["", ...products.map((each) => `/${each}`)]);
    }
    const views = [...new Set(this.pictures.flatMap((each) => each.views.map((view) => view[0])))];
    if (views.length > 1) {
      this.view = choice("Tiles show", views);
      if (views.includes(this.firstView)) this.view.value = this.firstView;
    }
    this.order = choice("Sort by", [...new Set([this.listed, ...Object.keys(ORDERS)])]);
    this.search = make("input", { type: "search", placeholder: "part of a name" });
    this.search.addEventListener("input", () => this.update());
    this.controls.append(make("label", { class: "search", textContent: "Search" }, [this.search]));
  }

  isUseful(name) {
    if (name === "Failed") return this.pictures.some((each) => each.failure);
    if (name === "Without verdict") return this.pictures.some((each) => !each.failure && !each.label);
    const labeled = this.pictures.some((each) => each.label);
    return name === "False alarms" || name === "Missed" ? labeled && this.pictures.some((each) => each.truth) : labeled;
  }

  update() {
    const words = this.search ? this.search.value.toLowerCase().trim() : "";
    const matches = this.filter && FILTERS[this.filter.value];
    const product = this.product && this.product.value ? this.product.value.slice(1) : null;
    this.shown = this.pictures.filter(
      (each) =>
        (!matches || matches(this, each)) &&
        (product === null || (each.product || "") === product) &&
        (!words || `${each.title} ${each.failure || ""}`.toLowerCase().includes(words)),
    );
    if (this.order && this.order.value !== this.listed) this.shown.sort(ORDERS[this.order.value]);
    if (this.showsControls) {
      this.root.querySelector(".count").textContent = `${count(this.shown.length)} of ${count(this.pictures.length)} images`;
    }
    this.list.replaceChildren();
    this.addTiles();
  }

  addTiles(number = BATCH) {
    const made = this.list.children.length;
    this.list.append(...this.shown.slice(made, made + number).map((picture, place) => this.makeTile(picture, made + place)));
    this.observer.disconnect();
    if (this.list.children.length < this.shown.length) this.observer.observe(this.end);
  }

  makeTile(picture, place) {
    const verdict = this.verdict(picture);
    const frame = make("span", { class: "frame" });
    if (picture.views.length) frame.append(this.makeImage(picture));
    else frame.append(make("span", { class: "failure", textContent: picture.failure || "no image" }));
    const row = make("span", { class: "row" });
    if (picture.score !== undefined) row.append(make("span", { class: "score", textContent: picture.score.toFixed(4) }));
    if (verdict) row.append(make("span", { class: "badge", textContent: verdict }));
    if (picture.truth) row.append(make("span", { class: `badge ${picture.truth}`, textContent: `truly ${picture.truth}` }));
    const title = make("span", { class: "title", textContent: picture.title, title: picture.title });
    const folder = this.product && picture.product;
    const words = [title, ...(folder ? [make("span", { class: "title folder", textContent: folder })] : []), row];
    const button = make("button", { type: "button", class: `tile ${verdict || ""}` }, [
      frame,
      make("span", { class: "words" }, words),
    ]);
    button.addEventListener("click", () => viewer.open(this, place));
    return make("li", {}, [button]);
  }

  makeImage(picture) {
    const names = picture.views.map((view) => view[0]);
    const chosen = Math.max(0, names.indexOf(this.view ? this.view.value : this.firstView));
    return make("img", { src: this.thumbnails(picture)[chosen], alt: "", decoding: "async" });
  }

  moveFocus(event) {
    const tile = event.target.closest("li");
    if (!tile) return;
    const tiles = [...this.list.children];
    const below = tiles.findIndex((each) => each.offsetTop > tiles[0].offsetTop);
    const columns = below < 0 ? tiles.length : below; // one row
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const next = tiles[tiles.indexOf(tile) + (steps[event.key] || NaN)];
    if (!next) return;
    event.preventDefault();
    next.firstChild.focus();
  }

  focusTile(place) {
    if (place >= this.list.children.length) this.addTiles(place + 1 - this.list.children.length);
    this.list.children[place]?.firstChild.focus();
  }
}

/* --- the viewer: one image in all its views --- */

class Viewer {
  constructor(dialog) {
    this.dialog = dialog;
    const button = (text, label, action) => {
      const made = make("button", { type: "button", textContent: text, attributes: { "aria-label": label } });
      made.addEventListener("click", action);
      return made;
    };
    this.title = make("h2", { id: "viewer-title" });
    this.place = make("small");
    this.stage = make("div", { class: "stage" });
    this.side = make("div", { class: "side" });
    this.before = button("\u2190", "Previous image", () => this.step(-1));
    this.after = button("\u2192", "Next image", () => this.step(1));
    const close = button("\u2715", "Close", () => this.dialog.close());
    dialog.append(
      make("div", { class: "bar" }, [this.title, this.place, this.before, this.after, close]),
      make("div", { class: "body" }, [this.stage, this.side]),
    );
    dialog.addEventListener("keydown", (event) => this.useKey(event));
    dialog.addEventListener("close", () => this.gallery.focusTile(this.number));
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  open(gallery, number) {
    this.gallery = gallery;
    this.number = number;
    this.view = gallery.view ? gallery.view.value : gallery.firstView;
    this.dialog.showModal();
    this.show();
  }

  step(by) {
    const number = this.number + by;
    if (number < 0 || number >= this.gallery.shown.length) return;
    this.number = number;
    this.show();
  }

  useKey(event) {
    if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    const views = this.gallery.shown[this.number].views;
    const turn = (by) => {
      const now = Math.max(0, views.findIndex((view) => view[0] === this.view));
      this.choose(views[(now + by + views.length) % views.length][0]);
    };
    const actions = {
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      ArrowUp: () => views.length && turn(-1),
      ArrowDown: () => views.length && turn(1),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  choose(view) {
    this.view = view;
    this.show();
  }

  show() {
    const picture = this.gallery.shown[this.number];
    const names = picture.views.map((view) => view[0]);
    const chosen = Math.max(0, names.indexOf(this.view));
    this.title.textContent = picture.title;
    this.place.textContent = `${count(this.number + 1)} of ${count(this.gallery.shown.length)}`;
    this.before.disabled = this.number === 0;
    this.after.disabled = this.number === this.gallery.shown.length - 1;
    if (names.length) {
      const alt = `${names[chosen]} of ${picture.title}`;
      this.stage.replaceChildren(make("img", { src: this.gallery.thumbnails(picture)[chosen], alt }));
    } else {
      this.stage.replaceChildren(make("p", { textContent: picture.failure || "There is no image." }));
    }
    const hadFocus = this.side.contains(document.activeElement);
    this.side.replaceChildren(...this.describe(picture, names, chosen));
    if (hadFocus) this.side.querySelector('[aria-pressed="true"]')?.focus();
  }

  describe(picture, names, chosen) {
    const parts = [];
    if (names.length > 1) {
      const buttons = names.map((name, number) => {
        const pressed = { "aria-pressed": String(number === chosen) };
        const button = make("button", { type: "button", textContent: name, attributes: pressed });
        button.addEventListener("click", () => this.choose(name));
        return button;
      });
      const group = { role: "group", "aria-label": "Views" };
      parts.push(make("div", { class: "views", attributes: group }, buttons));
    }
    const facts = [["Verdict", this.gallery.verdict(picture)], ["Score", picture.score?.toFixed(6)]];
    facts.push(["Truth", picture.truth], [this.gallery.productTitle, picture.product], ["Failure", picture.failure], ...picture.facts);
    const rows = facts
      .filter(([, value]) => value)
      .map(([name, value]) => make("div", {}, [make("dt", { textContent: name }), make("dd", { textContent: value })]));
    parts.push(make("dl", { class: "facts" }, rows));
    const links = picture.views.filter((view) => view[1]);
    if (links.length) {
      const items = links.map(([name, href]) => {
        const link = make("a", { href, textContent: name, target: "_blank", rel: "noopener" });
        return make("li", {}, [link]);
      });
      parts.push(make("p", { textContent: "Full files:" }), make("ul", { class: "links" }, items));
    }
    const hint = "Left and right arrow: other images. Up and down arrow: other views. Escape: close.";
    parts.push(make("p", { class: "hint", textContent: hint }));
    return parts;
  }
}

const viewer = new Viewer(document.querySelector("dialog.viewer"));
const galleries = [...document.querySelectorAll(".gallery")].map((root) => new Gallery(root));
document.addEventListener("threshold", (event) => {
  for (const gallery of galleries) {
    if (gallery.root.dataset.threshold === event.detail.name && gallery.moved !== event.detail.value) {
      gallery.moved = event.detail.value;
      gallery.update();
    }
  }
});
document.querySelectorAll(".threshold").forEach(setUpThreshold);
window.addEventListener("beforeprint", () => galleries.forEach((gallery) => gallery.addTiles(Infinity)));
