"""What a Core ML bundle answers, computed by the evaluator."""

from __future__ import annotations

from edge.bundle.manifest import Bundle
from edge.inputs.image import pixels
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.types import Embeddings, OpenOptions, Tokens
from exporters.evaluators import mil


def answered(path, image, question, count):
    """Greedy tokens about an image of one view, not stopped by an end token."""
    bundle = Bundle.open(path)
    options, spec = OpenOptions(threads=1, context=256), bundle.manifest.spec
    see, speak = (mil.evaluate(bundle.files(part), options, "fp32") for part in bundle.manifest.parts)
    rows = see.run({"pixel_values": pixels(image, spec.image)})["image_embeds"][0]
    texts = Tokenizer.open(bundle.file(bundle.manifest.tokenizer))
    fed = segments(spec.prompt, texts, [Turn.about(question, [Embeddings(rows, "it")])])
    logits, told = speak.extend(fed), []
    for _ in range(count):
        told.append(int(logits.argmax()))
        logits = speak.extend([Tokens((told[-1],))])
    return told
