"""`edge serve` with the demo: public clients get what `edge run` says, and signals, keys and TLS do as they should."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import signal
import ssl
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from commands import call
from conftest import REPOSITORY
from exported import Exports
from huggingface_hub import InferenceClient
from pydantic import BaseModel, Field
from serving import serving, uri
from soak import Soak, questions

import edge
from exporters.demo.heldout import items

DEMO = REPOSITORY / "exporters" / "demo"
PICTURES = DEMO / "pictures"
SHOWN = {"shapes.png": "What colour is the star?", "sign.png": "What does the sign say?"}
KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def demo(exports: Exports) -> Path:
    return exports.bundle(checkpoint=DEMO / "checkpoint", calib=REPOSITORY / "calib_data")


@pytest.fixture(scope="module")
def address(demo: Path) -> Iterator[str]:
    with serving(demo) as (_, found):
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none is needed", max_retries=0)


def about(picture: str, question: str) -> list[Any]:
    url = uri((PICTURES / picture).read_bytes())
    return [
        {
            "role": "user",
            "content": [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}],
        }
    ]


def test_the_official_client_gets_what_edge_run_says(client: openai.OpenAI, demo: Path) -> None:
    (model,) = client.models.list()
    assert model.id == demo.name
    for picture, question in SHOWN.items():
        said = call("run", demo, PICTURES / picture, question, "--json").json
        got = client.chat.completions.create(
            model=model.id, messages=about(picture, question), logprobs=True, top_logprobs=1
        )
        assert got.choices[0].message.content == said["text"]
        assert got.choices[0].logprobs and got.choices[0].logprobs.content and got.usage
        assert len(got.choices[0].logprobs.content) == len(said["token_ids"]) == got.usage.completion_tokens
        assert got.usage.prompt_tokens == said["prompt_tokens"]
        chunks = client.chat.completions.create(model=model.id, messages=about(picture, question), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said["text"]
        response = client.responses.create(
            model=model.id,
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": question},
                        {"type": "input_image", "image_url": uri((PICTURES / picture).read_bytes()), "detail": "auto"},
                    ],
                }
            ],
        )
        assert response.output_text == said["text"]


def test_the_official_client_reads_the_events_of_responses(client: openai.OpenAI) -> None:
    with client.responses.stream(model=client.models.list().data[0].id, input="Is there a star?") as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert events.get_final_response().output_text == text != ""


class Star(BaseModel):
    colour: Literal["Red", "Green", "Blue", "Yellow"]
    points: Literal[4, 5, 6]
    near: list[Literal["circle", "square"]] = Field(max_length=3)


def test_the_official_client_gets_objects_of_its_classes(client: openai.OpenAI) -> None:
    """Of Pydantic models, in both endpoints, whole and streamed."""
    name, messages = client.models.list().data[0].id, about("shapes.png", "What colour is the star?")
    chat = client.chat.completions.parse(model=name, messages=messages, response_format=Star)
    found = chat.choices[0].message.parsed
    assert isinstance(found, Star)
    with client.chat.completions.stream(model=name, messages=messages, response_format=Star) as events:
        assert events.get_final_completion().choices[0].message.parsed == found
    response = client.responses.parse(model=name, input="What colour is the star?", text_format=Star)
    assert isinstance(response.output_parsed, Star)
    with client.responses.stream(model=name, input="What colour is the star?", text_format=Star) as events:
        assert events.get_final_response().output_parsed == response.output_parsed


def test_the_official_client_is_told_of_an_object_that_was_closed(client: openai.OpenAI) -> None:
    name, messages = client.models.list().data[0].id, about("shapes.png", "What colour is the star?")
    asked: Any = {"model": name, "messages": messages, "max_tokens": 40}
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    held: Any = {"type": "json_schema", "json_schema": {"name": "told", "schema": text}}
    answers = [
        client.chat.completions.create(**asked, temperature=2, seed=seed, response_format=held).choices[0]
        for seed in range(3)
    ]
    assert "length" in {answer.finish_reason for answer in answers}
    assert all("text" in json.loads(answer.message.content or "") for answer in answers)
    held["json_schema"]["schema"] = {"not": {}}
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(**asked, response_format=held)
    assert (told.value.code, told.value.param) == ("invalid_json_schema", "response_format.json_schema.schema")


def test_its_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    name = client.models.list().data[0].id
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=about("shapes.png", "?"))
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model=name, messages=about("shapes.png", "?"), n=2)
    assert told.value.param == "n"
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Why? " * 5000}])
    assert told.value.code == "context_length_exceeded"


def test_another_public_client_is_answered(address: str, client: openai.OpenAI) -> None:
    """huggingface_hub speaks the protocol with an implementation of its own."""
    other = InferenceClient(base_url=f"{address}/v1", api_key="none is needed")
    name = client.models.list().data[0].id
    for picture, question in SHOWN.items():
        messages = about(picture, question)
        expected = client.chat.completions.create(model=name, messages=messages)
        got = other.chat_completion(messages, model=name, max_tokens=20)
        assert got.choices[0].message.content == expected.choices[0].message.content
        chunks = other.chat_completion(messages, model=name, max_tokens=20, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == expected.choices[0].message.content


def test_many_clients_get_the_answers_of_one(client: openai.OpenAI, demo: Path) -> None:
    """Held-out questions, eight at a time and in turns: what is kept of others changes none."""
    asked = list(islice(items(), 24))
    with edge.load(demo) as session:
        expected = [session.ask(item.picture, item.question) for item in asked]
    name = client.models.list().data[0].id

    def ask(number: int) -> str | None:
        from io import BytesIO

        data = BytesIO()
        asked[number].picture.save(data, "PNG")
        content: list[Any] = [
            {"type": "image_url", "image_url": {"url": uri(data.getvalue())}},
            {"type": "text", "text": asked[number].question},
        ]
        got = client.chat.completions.create(model=name, messages=[{"role": "user", "content": content}])
        return got.choices[0].message.content

    order = [*range(24), *reversed(range(24))]
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(ask, order))
    assert said == [expected[number] for number in order]


def test_a_signal_lets_what_was_accepted_be_answered(demo: Path) -> None:
    body = json.dumps({"messages": about("shapes.png", SHOWN["shapes.png"])}).encode()
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving(demo, "--api-key", KEY) as (process, address), ThreadPoolExecutor(1) as pool:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            request = urllib.request.Request(f"{address}/v1/chat/completions", body, headers)
            answer = pool.submit(lambda request=request: urllib.request.urlopen(request, timeout=60).read())
            metrics = urllib.request.Request(f"{address}/metrics", headers=headers)
            while b"edge_requests_held 1" not in urllib.request.urlopen(metrics).read() and not answer.done():
                pass
            process.send_signal(number)
            assert json.loads(answer.result(60))["choices"][0]["message"]["content"] == "Yellow."
            assert process.wait(30) == 0


def test_keys_come_from_the_environment_too(demo: Path) -> None:
    with serving(demo, "--host", "0.0.0.0", EDGE_API_KEY=KEY) as (_, address):
        port = address.rpartition(":")[2]
        url = f"http://127.0.0.1:{port}/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="another").models.list()
        assert openai.OpenAI(base_url=url, api_key=KEY).models.list().data[0].id == demo.name


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of a key of its own, for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = (
        made.serial_number(7).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    )
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "key.pem").write_bytes(data)
    return folder / "cert.pem", folder / "key.pem"


def test_tls(demo: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with serving(demo, "--cert", cert, "--key", key) as (_, address):
        assert address.startswith("https://")
        context = ssl.create_default_context(cafile=cert)
        with urllib.request.urlopen(f"{address}/health", context=context) as answer:
            assert json.load(answer) == {"status": "ok"}
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{address}/health", context=ssl.create_default_context())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--cert", "none.pem"], "--key"),
        (["--allow-origin", "*"], "--allow-origin"),
        (["--kept", "much"], "1.5GB"),
    ],
)
def test_calls_that_are_off(demo: Path, arguments: list[str], hint: str) -> None:
    said = call("serve", demo, *arguments)
    assert said.code == 2
    assert hint in said.err


def test_two_folders_of_one_name(demo: Path, tmp_path: Path) -> None:
    (tmp_path / demo.name).mkdir()
    said = call("serve", demo, tmp_path / demo.name)
    assert said.code == 2 and "rename" in said.err


def test_base64_is_what_curl_users_send(address: str) -> None:
    """A frame, as a camera's script posts it."""
    image = "data:image/png;base64," + base64.b64encode((PICTURES / "sign.png").read_bytes()).decode()
    body = json.dumps({"camera": "door", "image": image, "question": SHOWN["sign.png"]}).encode()
    request = urllib.request.Request(f"{address}/v1/frames", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    assert (found["answer"], found["frame"], found["dropped"]) == ("OWL.", "1", False)


def test_who_goes_changes_no_answer(address: str, demo: Path) -> None:
    """The short form of `scripts/soak-serve`."""
    found = Soak(address, questions(demo, 12), 0.2).run(100, 8)
    assert found.wrong == []
    assert found.right + found.cut == 100 and found.cut > 10
    assert found.held == 0
