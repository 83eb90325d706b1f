"""A page that classifies images: a Space of the Hugging Face Hub runs it, and so does `python app.py`."""

from __future__ import annotations

from pathlib import Path

import gradio
from PIL import Image

from baseline.inference.model import load_model

model = load_model(Path(__file__).parent / "model")


def classify(image: Image.Image | None) -> dict[str, float]:
    """Return the probability of each class."""
    if image is None:
        raise gradio.Error("Choose an image first.")
    row = model.predict([image]).iloc[0]
    return {name: float(row[f"p_{name}"]) for name in model.classes}


def as_plain_text(name: str) -> str:
    """Return Markdown that shows the name of a class as it is: every ASCII character but letters and digits is escaped.

    >>> as_plain_text("<b>ants")
    '&#60;b&#62;ants'
    """
    return "".join(char if char.isalnum() or ord(char) > 127 else f"&#{ord(char)};" for char in name[:200])


page = gradio.Interface(
    classify,
    gradio.Image(type="pil", label="Image"),
    gradio.Label(num_top_classes=5, label="Class"),
    title="What is in the image?",
    description=f"{len(model.classes)} classes: {', '.join(map(as_plain_text, model.classes[:12]))}",
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
