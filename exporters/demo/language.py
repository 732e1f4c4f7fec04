"""Stage "language": the decoder learns the conversations from codes, with no picture drawn and no tower run."""

import logging
import random
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from exporters.demo.codes import CODED, Codebook, labels
from exporters.demo.model import Shape, build_decoder
from exporters.demo.prompts import Conversation, Prompter
from exporters.demo.questions import KINDS, Question, ask, conversation, plural
from exporters.demo.world import COLOURS, LETTERS, SHAPES, SIZES, Scene, scene

log = logging.getLogger("demo")
ROWS = 144


@dataclass(frozen=True)
class Batch:
    """Conversations about as many pictures, padded on the right."""

    before: Tensor  # [T0] ids, the same for all
    after: Tensor  # [B, T] ids
    weights: Tensor  # [B, T] how much predicting the id counts; 0 in questions

    @property
    def learned(self) -> Tensor:
        """`[B, T]`, whether the id is to be predicted."""
        return self.weights > 0

    @staticmethod
    def of(conversations: list[Conversation], device: torch.device) -> "Batch":
        longest = max(len(c.after) for c in conversations)
        after = torch.zeros(len(conversations), longest, dtype=torch.long)
        weights = torch.zeros(len(conversations), longest)
        for row, one in enumerate(conversations):
            after[row, : len(one.after)] = torch.tensor(one.after)
            weights[row, : len(one.after)] = torch.tensor(one.weights)
        return Batch(torch.tensor(conversations[0].before).to(device), after.to(device), weights.to(device))


def answer_logits(decoder: LlamaForCausalLM, rows: Tensor, kept: list[int], batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits `[N, V]` at the places of all learned ids, and those ids `[N]`.

    `rows` `[B, len(kept), H]` are the image rows number `kept` of 144; rows left out keep their positions free, so
    that a decoder taught on the coded rows alone understands whole pictures.
    """
    model = decoder.model
    size, device = len(rows), rows.device
    start = len(batch.before)
    positions = torch.cat(
        [
            torch.arange(start, device=device),
            start + torch.tensor(kept, device=device),
            start + ROWS + torch.arange(batch.after.shape[1], device=device),
        ]
    )[None]
    before = model.embed_tokens(batch.before).expand(size, -1, -1)
    states = torch.cat([before, rows.to(before.dtype), model.embed_tokens(batch.after)], 1)
    turns = model.rotary_emb(states, positions)
    mask = states.new_full((states.shape[1],) * 2, float("-inf")).triu(1)
    for layer in model.layers:
        states = layer(states, attention_mask=mask, position_embeddings=turns, position_ids=positions)
    first = start + len(kept) - 1  # the state that predicts after[0]
    wanted = states[:, first:-1][batch.learned]  # [N, H]
    return decoder.lm_head(model.norm(wanted)), batch.after[batch.learned]


def answer_loss(logits: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
    """The mean over the learned ids by their weights."""
    weights = batch.weights[batch.learned]
    losses = nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
    return (losses * weights).sum() / weights.sum()


def exact_by_kind(
    decoder: LlamaForCausalLM, rows: Tensor, prompter: Prompter, asked: list[Question]
) -> dict[str, float]:
    """Share of questions whose every answer id is the most likely one: what greedy decoding would get exactly right."""
    batch = Batch.of([prompter.conversation([question]) for question in asked], rows.device)
    logits, wanted = answer_logits(decoder, rows, list(range(ROWS)), batch)
    right = (logits.argmax(-1) == wanted).tolist()
    score: dict[str, list[bool]] = defaultdict(list)
    for question, length in zip(asked, batch.learned.sum(1).tolist(), strict=True):
        score[question.kind].append(all(right[:length]))
        del right[:length]
    return {kind: 100 * sum(score[kind]) / len(score[kind]) for kind in KINDS if score[kind]}


def watched(count: int, split: str = "watch") -> list[tuple[Scene, Question]]:
    """Scenes of a split with one question each, the kinds in turn; scenes that cannot be asked are passed over."""
    found: list[tuple[Scene, Question]] = []
    index = 0
    while len(found) < count:
        what = scene(split, index)
        question = ask(what, KINDS[len(found) % len(KINDS)], random.Random(f"ask:{what.seed}"))
        if question:
            found.append((what, question))
        index += 1
    return found


class LanguageStage:
    """Conversations about random scenes: eight turns over the coded rows alone, or three turns over all 144 rows.

    The short sequences of the first sort teach the reasoning cheaply; `sparse` of all steps at the beginning have only
    these, later every second step has a whole picture.
    """

    def __init__(self, shape: Shape, prompter: Prompter, batch: int, sparse: int, device: torch.device) -> None:
        self.codebook = Codebook(shape.hidden).to(device)
        self.module = build_decoder(shape)
        nn.Module.to(self.module, device)  # transformers' own `to` has no types
        name_codes(self.module, self.codebook, prompter)
        self.prompter, self.batch, self.sparse, self.device = prompter, batch, sparse, device

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"language:{step}")
        scenes = [scene("language", step * self.batch + i) for i in range(self.batch)]
        marks = torch.tensor([labels(s) for s in scenes], device=self.device)
        whole = step >= self.sparse and step % 2 == 1
        kept, turns = (list(range(ROWS)), 3) if whole else (CODED, 8)
        rows = self.codebook.image(marks)[:, kept]
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(rows.shape, generator=generator).to(self.device)
        rows = rows + noise * rng.uniform(0.05, 0.4)
        batch = Batch.of([self.prompter.conversation(conversation(s, rng, turns)) for s in scenes], self.device)
        logits, wanted = answer_logits(self.module, rows, kept, batch)
        return answer_loss(logits, wanted, batch), {"right": float((logits.argmax(-1) == wanted).float().mean())}

    def report(self, step: int) -> None:
        scenes, asked = zip(*watched(240), strict=True)
        marks = torch.tensor([labels(s) for s in scenes], device=self.device)
        scores = exact_by_kind(self.module, self.codebook.image(marks), self.prompter, list(asked))
        log.info("language watch step %d: mean %.1f  %s", step, sum(scores.values()) / len(scores), line(scores))


def line(scores: dict[str, float]) -> str:
    """Scores by kind for the log."""
    return "  ".join(f"{kind} {value:.1f}" for kind, value in scores.items())


@torch.no_grad()
def name_codes(decoder: LlamaForCausalLM, codebook: Codebook, prompter: Prompter) -> None:
    """Let the pieces that name an attribute's value start out near its code, in the table and in the head."""
    names: list[tuple[str, Tensor]] = []
    for attribute, values in (("what", SHAPES), ("colour", tuple(COLOURS)), ("size", tuple(SIZES))):
        for value in values:
            code = codebook.of(attribute, value)
            names += [(word, code) for word in (value, value.capitalize())]
            if attribute == "what":
                names.append((plural(value), code))
    for word, attribute, value in (
        ("top", "row", "top"), ("bottom", "row", "bottom"), ("left", "column", "left"), ("right", "column", "right"),
    ):  # fmt: skip
        names += [(spelled, codebook.of(attribute, value)) for spelled in (word, word.capitalize())]
    middle = codebook.of("row", "middle") + codebook.of("column", "middle")
    names += [("centre", middle), ("Centre", middle)]
    spelled = [("\u2581" + word, code) for word, code in names]
    for character in LETTERS + "0123456789":
        code = codebook.of("what", character)
        spelled += [(character, code)] + ([("\u2581" + character, code)] if character in LETTERS else [])
    for piece, code in spelled:
        number = prompter.pieces.piece_to_id(piece)
        if number == prompter.pieces.unk_id():
            raise ValueError(f"the tokenizer has no piece {piece!r}")
        decoder.model.embed_tokens.weight[number] += code
        decoder.lm_head.weight[number] += code * 0.1
