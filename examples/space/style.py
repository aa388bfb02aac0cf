"""Style sheet and script of the page."""

__all__ = ["ACCESS", "STYLE"]

# Goes into the page's head, since Gradio would limit a `css` argument to its own container
STYLE = """
.gradio-container { max-width: 1240px !important; width: 100%; margin: 0 auto !important; }
.message { padding: 10px 14px; border-left: 6px solid #6b7280; background: var(--background-fill-secondary);
  overflow-wrap: anywhere; }
.message.normal { border-color: #15803d; }
.message.anomalous, .message.error { border-color: #b91c1c; }
.message.warning { border-color: #b45309; }
/* Gradio lays label and buttons over the picture, where they would hide the end of the color bar */
#map .image-container, #slider .slider-wrap { padding-top: 40px; }
.scroll { overflow: auto; max-height: 420px; }
.scroll table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll table caption { text-align: left; padding: 4px 0; }
.scroll table th, .scroll table td { padding: 4px 8px !important; border-width: 0 0 1px !important;
  text-align: right !important; white-space: nowrap; }
.scroll table th, .scroll table td { border-color: var(--border-color-primary) !important; }
.scroll table, .scroll thead, .scroll tbody, .scroll tr { border: 0 !important; }
.scroll table .text { text-align: left !important; white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
.html-container { padding: 0 !important; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important; }
:focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
@media (max-width: 640px) { .gradio-container .fillable { padding: 12px !important; } }
"""
# Accessibility that Gradio lacks: the handle between picture and heat map takes the focus and follows the arrow keys,
# examples have names, and screen readers read answers aloud
ACCESS = """
() => {
  const names = EXAMPLE_NAMES;
  const moveBy = (handle, step) => {
    const box = handle.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
    const send = (target, type, to) => target.dispatchEvent(
      new MouseEvent(type, {bubbles: true, cancelable: true, view: window, clientX: to, clientY: y}));
    send(handle, "mousedown", x); send(window, "mousemove", x + step); send(window, "mouseup", x + step);
  };
  const improve = () => {
    const handle = document.querySelector('#slider [data-testid="slider"]');
    if (handle && !handle.hasAttribute("tabindex")) {
      const frame = handle.parentElement;
      const tell = () => {
        const box = handle.getBoundingClientRect(), around = frame.getBoundingClientRect();
        const part = (box.left + box.width / 2 - around.left) / around.width;
        handle.setAttribute("aria-valuenow", Math.round(100 * Math.min(1, Math.max(0, part))));
      };
      const facts = {tabindex: 0, role: "slider", "aria-label": "From where on the heat map is shown, in percent",
                     "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 50};
      for (const [name, value] of Object.entries(facts)) handle.setAttribute(name, value);
      handle.addEventListener("keydown", (event) => {
        const width = frame.clientWidth;
        const step = {ArrowLeft: -width / 20, ArrowRight: width / 20, Home: -width, End: width}[event.key];
        if (step === undefined) return;
        event.preventDefault();
        moveBy(handle, step);
        tell();
      });
    }
    const texts = {"#slider img": ["The picture", "The picture under its heat map"], "#map img": ["The anomaly map"]};
    for (const [where, what] of Object.entries(texts))
      document.querySelectorAll(where).forEach((image, number) => {
        if (image.alt !== what[number]) image.alt = what[number];
      });
    document.querySelectorAll("#examples .gallery-item").forEach((button, number) => {
      if (!button.hasAttribute("aria-label")) {
        button.setAttribute("aria-label", names[number]); button.title = names[number];
      }
    });
    document.querySelectorAll(".answer").forEach((answer) => {
      if (!answer.hasAttribute("role")) answer.setAttribute("role", "status");
    });
  };
  new MutationObserver(improve).observe(document.body, {childList: true, subtree: true});
  improve();
}
"""
