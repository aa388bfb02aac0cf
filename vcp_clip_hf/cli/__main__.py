"""`python -m vcp_clip_hf.cli`, as `accelerate launch -m` needs it."""

from . import main


if __name__ == "__main__":
    main()
