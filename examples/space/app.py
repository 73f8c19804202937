"""A Gradio page around a pipeline: `python app.py [MODEL]`. For research only; not for clinical use."""

from __future__ import annotations

import sys

import gradio as gr
import numpy as np

from covidcxr import Pipeline
from covidcxr.errors import CovidCXRError
from covidcxr.phantom import draw_phantom
from covidcxr.pipeline.prediction import in_words

NOTICE = "**For research only, not for clinical use.** Use drawn images, or images that are published."


def make_page(pipeline: Pipeline) -> gr.Blocks:
    """Build the page.

    Args:
        pipeline: Answers the images.

    Returns:
        The page, to be launched.
    """

    def predict(path: str | None) -> tuple[np.ndarray | None, dict[str, float] | None, str]:
        if path is None:
            return None, None, "Choose an image first."
        try:
            prediction = pipeline(path)
        except CovidCXRError as error:
            return None, None, str(error)
        reasons = " ".join(map(in_words, prediction.reasons))
        answer = prediction.label or f"No answer. {reasons}"
        return prediction.overlay(), dict(prediction.probabilities), answer

    def draw(seed: float) -> str:
        from tempfile import NamedTemporaryFile

        from covidcxr.io import write_image

        with NamedTemporaryFile(suffix=".png", delete=False) as file:
            write_image(file.name, draw_phantom(int(seed)).image)
        return file.name

    with gr.Blocks(title="covidcxr") as page:
        gr.Markdown(f"# Chest radiograph: lungs, infection, answer\n{NOTICE}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", label="Chest radiograph (PNG, JPEG, TIFF)")
                seed = gr.Slider(0, 99, step=1, label="or draw a phantom")
                gr.Button("Draw").click(draw, seed, image)
            with gr.Column():
                overlay = gr.Image(label="Outlines of lungs and infection")
                probabilities = gr.Label(label="Probabilities")
                answer = gr.Textbox(label="Answer")
        image.change(predict, image, [overlay, probabilities, answer])
    return page


if __name__ == "__main__":
    make_page(Pipeline.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "mini")).launch()
