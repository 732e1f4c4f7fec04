"""Stage "joint": the whole model on drawn pictures, its decoder rounded to four bits in the last part."""

import logging
import random

import torch
from torch import Tensor, nn

from exporters.demo.codes import Codebook, labels
from exporters.demo.eye import code_loss
from exporters.demo.fourbit import four_bit
from exporters.demo.language import ROWS, Batch, answer_logits, answer_loss, exact_by_kind, line, watched
from exporters.demo.model import Eye, Shape, build_decoder
from exporters.demo.pixels import drawn
from exporters.demo.prompts import Prompter
from exporters.demo.questions import conversation
from exporters.demo.world import scene

log = logging.getLogger("demo")
TURNS = (1, 4, 8)  # a conversation's length: the first question is what users ask most


class Whole(nn.Module):
    """Eye and decoder; pixels and conversations to the logits at the answers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.eye = Eye(shape)
        self.decoder = build_decoder(shape)

    def forward(self, pixels: Tensor, batch: Batch, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[N, V]`, the ids wanted `[N]`, and the image rows `[B, 144, H]`."""
        rows = self.eye(pixels).float()
        heard = rows + torch.randn_like(rows) * noise
        return *answer_logits(self.decoder, heard, list(range(ROWS)), batch), rows


class JointStage:
    """Answers count fully; the codes go on being asked for, so that the eye keeps what only few questions need."""

    def __init__(self, shape: Shape, prompter: Prompter, batch: int, rounded_from: int, device: torch.device) -> None:
        self.module = Whole(shape).to(device)
        self.module.eye.tower.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
        self.codebook = Codebook(shape.hidden).to(device)
        self.prompter, self.batch, self.rounded_from, self.device = prompter, batch, rounded_from, device

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"joint:{step}")
        scenes = [scene("joint", step * self.batch + i) for i in range(self.batch)]
        marks = torch.tensor([labels(s) for s in scenes], device=self.device)
        turns = TURNS[step % len(TURNS)]
        batch = Batch.of([self.prompter.conversation(conversation(s, rng, turns)) for s in scenes], self.device)
        weights = four_bit(self.module, "decoder.") if step >= self.rounded_from else {}
        seen = drawn(scenes, self.device)
        logits, wanted, rows = torch.func.functional_call(self.module, weights, (seen, batch, 0.1))
        answers = answer_loss(logits, wanted, batch)
        codes, right = code_loss(rows, marks, self.codebook)
        told = float((logits.argmax(-1) == wanted).float().mean())
        return answers + 0.3 * codes, {"answers": float(answers.detach()), "right": told, "what": float(right["what"])}

    def report(self, step: int) -> None:
        scenes, asked = zip(*watched(400), strict=True)
        rows = torch.cat([self.module.eye(drawn(list(scenes[i : i + 20]), self.device)) for i in range(0, 400, 20)])
        decoder = self.module.decoder
        trained = {name: weight.clone() for name, weight in decoder.state_dict().items()}
        for name, weights in (("as trained", {}), ("four-bit decoder", four_bit(decoder, ""))):
            decoder.load_state_dict(weights, strict=False)
            torch.clear_autocast_cache()  # it would go on answering with the weights before
            scores = exact_by_kind(decoder, rows.float(), self.prompter, list(asked))
            mean = sum(scores.values()) / len(scores)
            log.info("joint watch step %d, %s: mean %.2f  %s", step, name, mean, line(scores))
        decoder.load_state_dict(trained)
