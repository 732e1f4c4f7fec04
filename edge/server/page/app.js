// The page: a conversation about pictures, and what stands around it.

import {benchmarkTable, element, facts} from "/page/about.js";
import * as client from "/page/client.js";
import {fromFile, fromVideo} from "/page/pictures.js";

const $ = (id) => document.getElementById(id);
let models = [], messages = [], pictures = [], running = null, stream = null, watching = null;

const model = () => models.find((one) => one.id === $("model").value);
const seconds = (ms) => `${(ms / 1e3).toFixed(ms < 1e4 ? 2 : 1)} s`;

function complain(error) {
  if (error?.name === "AbortError") return;
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

function showPictures() {
  $("pictures").replaceChildren(...pictures.map((url, index) => {
    const remove = element("button", {type: "button", textContent: "✕", ariaLabel: `Remove picture ${index + 1}`});
    remove.onclick = () => { pictures.splice(index, 1); showPictures(); };
    return element("li", {}, element("img", {src: url, alt: `Picture ${index + 1} of the next question`}), remove);
  }));
}

async function add(input) {
  complain(null);
  for (const file of input.files)
    try {
      pictures.push(await fromFile(file));
    } catch (error) {
      complain(error);
    }
  input.value = "";
  showPictures();
  $("question").focus();
}

function say(who, text, images = []) {
  $("empty").hidden = true;
  const words = element("p", {textContent: text}), label = element("span", {className: "hidden", textContent: who === "mine" ? "You: " : "Answer: "});
  const shown = images.map((url, index) => element("img", {src: url, alt: `Picture ${index + 1}`}));
  const box = element("article", {className: `said ${who}`}, label);
  if (shown.length) box.append(element("div", {className: "images"}, ...shown));
  box.append(words);
  $("log").append(box);
  box.scrollIntoView({block: "end"});
  return {box, words};
}

async function told(timings, usage) {
  const found = [];
  if (timings.image_ms + timings.vision_ms >= 1) found.push(`image ${seconds(timings.image_ms + timings.vision_ms)}`);
  found.push(`first token ${seconds(timings.ttft_ms)}`);
  if (timings.decode_tok_s) found.push(`${timings.decode_tok_s.toFixed(1)} tokens/s`);
  if (usage) found.push(`${usage.prompt_tokens} tokens in, ${usage.prompt_tokens_details.cached_tokens} reused`);
  try {
    const bytes = await client.memory();
    if (bytes) found.push(`memory ${(bytes / 1e6).toFixed(0)} MB`);
  } catch {
    // it is told or not; the answer stands
  }
  return found.join(" · ");
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("measure").disabled = on;
  $("log").setAttribute("aria-busy", String(on));
}

async function ask(question) {
  const images = pictures;
  pictures = [];
  showPictures();
  complain(null);
  const content = [...images.map((url) => ({type: "image_url", image_url: {url}})), {type: "text", text: question}];
  const mine = say("mine", question, images);
  const answer = say("theirs", "");
  answer.words.classList.add("waiting");
  const asked = [...messages, {role: "user", content}];
  let text = "", timings = null, usage = null, failed = null;
  running = new AbortController();
  busy(true);
  try {
    for await (const chunk of client.chat(model().id, asked, running.signal)) {
      text += chunk.choices[0]?.delta.content ?? "";
      timings = chunk.timings ?? timings;
      usage = chunk.usage ?? usage;
      answer.words.textContent = text;
      answer.box.scrollIntoView({block: "end"});
    }
  } catch (error) {
    failed = error;
  }
  answer.words.classList.remove("waiting");
  running = null;
  busy(false);
  if (failed && failed.name !== "AbortError") {
    // Nothing of it is part of the conversation: it may be asked again.
    mine.box.remove();
    answer.box.remove();
    pictures = [...images, ...pictures];
    showPictures();
    $("question").value = question;
    complain(failed);
    return;
  }
  messages = [...asked, {role: "assistant", content: text || "…"}];
  const note = timings ? await told(timings, usage) : "stopped";
  answer.box.append(element("p", {className: "times", textContent: note}));
  answer.box.scrollIntoView({block: "end"});
}

function fresh() {
  running?.abort();
  messages = [];
  $("log").replaceChildren();
  $("empty").hidden = false;
  complain(null);
  $("question").focus();
}

async function toggleCamera() {
  const open = stream !== null;
  if (open) {
    stopWatching();
    stream.getTracks().forEach((track) => track.stop());
    stream = null;
  } else {
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
    } catch (error) {
      complain(new Error(`no camera: ${error.message}`));
      return;
    }
    $("video").srcObject = stream;
    await $("video").play();
  }
  $("camera").hidden = open;
  $("live").setAttribute("aria-expanded", String(!open));
  $("live").textContent = open ? "Live camera" : "Close camera";
}

function stopWatching() {
  clearInterval(watching?.timer);
  watching?.abort.abort();
  watching = null;
  $("watch").setAttribute("aria-pressed", "false");
}

// A picture every half a second; the server looks at the latest that there is, and drops the others.
function toggleWatching() {
  if (watching) return stopWatching();
  const question = $("question").value.trim() || $("question").placeholder, abort = new AbortController();
  let number = 0, flying = 0, shown = 0;
  const one = async () => {
    if (flying > 2) return;
    flying += 1;
    const name = String(++number);
    try {
      const body = {model: model().id, camera: "page", frame: name, image: fromVideo($("video"), 1024), question, max_tokens: 64};
      const found = await client.frame(body, abort.signal);
      if (!found.dropped && Number(found.frame) > shown) {
        shown = Number(found.frame);
        $("seen").textContent = `${found.answer} (picture ${found.frame}, ${seconds(found.timings.ttft_ms)})`;
      }
    } catch (error) {
      complain(error);
      if (error.name !== "AbortError") stopWatching();
    } finally {
      flying -= 1;
    }
  };
  watching = {abort, timer: setInterval(one, 500)};
  $("watch").setAttribute("aria-pressed", "true");
}

async function measure() {
  const found = [];
  busy(true);
  running = new AbortController();
  $("measuring").textContent = "Measuring…";
  try {
    for await (const row of client.benchmark(model().id, running.signal)) {
      found.push(row);
      $("rows").replaceChildren(benchmarkTable(found));
      $("measuring").textContent = `Measuring… ${found.length} rows`;
    }
    const url = URL.createObjectURL(new Blob([JSON.stringify(found, null, 1)], {type: "application/json"}));
    $("rows").append(element("a", {href: url, download: `${model().id}-bench.json`, textContent: "Save as JSON"}));
    $("measuring").textContent = "Done.";
  } catch (error) {
    $("measuring").textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
  running = null;
  busy(false);
}

function showModel() {
  $("facts").replaceChildren(...facts(model()));
  const sees = model().edge.sees;
  for (const id of ["take", "choose", "live"]) $(id).disabled = !sees;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (running || !question) return $("question").focus();
  $("question").value = "";
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
for (const id of ["take", "choose"]) {
  const label = document.querySelector(`label[for=${id}]`);
  $(id).addEventListener("change", () => add($(id)));
  $(id).addEventListener("focus", () => label.classList.add("focused"));
  $(id).addEventListener("blur", () => label.classList.remove("focused"));
}
$("stop").onclick = () => running?.abort();
$("fresh").onclick = fresh;
$("model").onchange = () => { fresh(); showModel(); };
$("live").onclick = toggleCamera;
$("snap").onclick = () => { pictures.push(fromVideo($("video"))); showPictures(); };
$("watch").onclick = toggleWatching;
$("measure").onclick = measure;
$("live").hidden = !(window.isSecureContext && navigator.mediaDevices?.getUserMedia);

try {
  models = await client.models();
  $("model").replaceChildren(...models.map((one) => element("option", {value: one.id, textContent: one.id})));
  showModel();
  document.body.dataset.ready = "yes";
} catch (error) {
  complain(error);
}
