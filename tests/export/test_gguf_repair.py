"""The doctor on files that we export, and what a repaired pair computes."""

from __future__ import annotations

import pytest

from edge.engines import open_part
from edge.errors import UsageError
from edge.formats import gguf
from edge.types import OpenOptions, PartFiles, Tokens
from exporters.gguf import doctor
from exporters.gguf.fault import Change
from exporters.gguf.names import FEATURE_LAYER, TEMPLATE, WORKAROUND
from exporters.gguf.rewrite import rewrite
from exporters.sources.checkpoint import open_checkpoint

PROMPT = (1, 5, 30, 17, 400, 9, 77, 210)


def pair_of(folder):
    (mmproj,) = folder.glob("mmproj-*.gguf")
    (decoder,) = set(folder.glob("*.gguf")) - {mmproj}
    return decoder, mmproj


def warnings(found):
    assert found.ok
    return {row.check for row in found.rows if row.status == "warning"}


def greedy(path, spec, count=16):
    part = PartFiles("gguf", "f16", ("decoder",), (path,), (), (), spec)
    decoder = open_part(part, "llamacpp", OpenOptions(threads=1, context=part.decoder.context))
    logits, ids = decoder.extend([Tokens(PROMPT)]), []
    for _ in range(count):
        ids.append(int(logits.argmax()))
        logits = decoder.extend([Tokens((ids[-1],))])
    return ids, logits.tobytes()


@pytest.mark.parametrize("projector", ["ldpnetv2", "ldpnet", "mlp2x_gelu"])
def test_nothing_is_wrong_with_what_we_export(exports, projector):
    checkpoint = exports.checkpoint(projector)
    assert warnings(doctor.diagnose(pair_of(exports.bundle(checkpoint=checkpoint, format="gguf")))) == {"class token"}


def test_a_repaired_pair_decodes_the_same(exports, tmp_path):
    pair = pair_of(exports.bundle(format="gguf", schemes=("f16",)))
    assert warnings(doctor.diagnose(pair)) == {"class token", "storage"}
    broken = [tmp_path / path.name for path in pair]
    spoilt = {"tokenizer.ggml.add_bos_token": False, TEMPLATE: "{{ messages[0]['content'] }}"}
    for path, copy, settings in zip(pair, broken, (spoilt, {FEATURE_LAYER: (1,)}), strict=True):
        rewrite(gguf.read(path), copy, Change(settings))
    assert not doctor.diagnose(broken).ok
    assert warnings(doctor.repair(broken, tmp_path / "out", False)) == {"class token", "storage"}
    spec = open_checkpoint(str(exports.checkpoint())).spec.decoder
    repaired = [tmp_path / "out" / path.name for path in pair]
    assert greedy(repaired[0], spec) == greedy(pair[0], spec)
    for copy, path in zip(repaired, pair, strict=True):
        one, other = gguf.read(copy, doctor.LISTS), gguf.read(path, doctor.LISTS)
        assert one.settings == other.settings


def test_an_export_with_the_workaround(exports):
    plain, rolled = (
        pair_of(exports.bundle(format="gguf", options={"gguf": {"mtmd_position_workaround": workaround}}))[1]
        for workaround in (False, True)
    )
    assert WORKAROUND not in gguf.read(plain).settings
    assert gguf.read(rolled).settings[WORKAROUND] is True
    found = doctor.diagnose([rolled])
    assert warnings(found) == {"class token"}
    assert any("positions rolled" in row.found for row in found.rows)


def test_a_workaround_for_no_mmproj_is_refused(exports):
    with pytest.raises(UsageError, match="for an mmproj, and none is written"):
        exports.export(options={"gguf": {"mtmd_position_workaround": True}})
