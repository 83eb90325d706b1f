"use strict";
// Images go to /predict one by one, a few at a time, so that each shows its answer as soon as it arrives.

const MAX_REQUESTS = 4, MIN_BARS = 5, MAX_TRIES = 6;
const settings = document.body.dataset;
const multilabel = settings.multilabel === "1", hasGradcam = settings.gradcam === "1";
const megabytes = Number(settings.megabytes);
const $ = (id) => document.getElementById(id);
const percent = (value) => value > 0 && value < 0.001 ? "< 0.1%" : `${(100 * value).toFixed(1)}%`;
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const queue = [];
let running = 0;

class Refused extends Error {}

async function post(address, file, name, fields = {}) {
  if (file.size === 0) throw new Refused("The file is empty.");
  if (file.size > megabytes * 1e6) throw new Refused(`The file is larger than ${megabytes} MB.`);
  for (let attempt = 1; ; attempt++) {
    const form = new FormData();
    form.append("image", file, name);
    for (const [key, value] of Object.entries(fields)) form.append(key, value);
    let response;
    try {
      response = await fetch(address, { method: "POST", body: form });
    } catch {
      throw new Refused("The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 503 && attempt < MAX_TRIES) {
      await sleep(Number(response.headers.get("Retry-After")) || 1);
      continue;
    }
    const body = await response.json().catch(() => ({}));
    throw new Refused(body.error || `The server answered with status ${response.status}.`);
  }
}

function addImage(file, name, label = null) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  const preview = part("img"), address = URL.createObjectURL(file);
  card.addresses = [address];
  card.classList.add("pending");
  part(".name").textContent = label === null ? name : `${name}, labeled ${label || "nothing"} in the run`;
  preview.alt = name;
  preview.onerror = () => {  // a TIFF, for example
    card.classList.add("blank");
    part("figcaption").textContent = "no preview";
  };
  preview.src = address;
  $("cards").prepend(card);
  $("results").hidden = false;
  card.scrollIntoView({ block: "nearest" });
  queue.push(async () => {
    if (!card.isConnected) return;
    try {
      const response = await post("predict", file, name);
      showPrediction(card, (await response.json()).predictions[0], file, name);
    } catch (error) {
      if (!(error instanceof Refused)) console.error(error);
      part(".answer").textContent = error instanceof Refused ? error.message : "The prediction failed.";
      card.classList.add("failed");
    }
    card.classList.remove("pending");
  });
  runQueue();
}

function runQueue() {
  while (running < MAX_REQUESTS && queue.length) {
    running++;
    queue.shift()().finally(() => { running--; runQueue(); });
  }
  const remaining = running + queue.length;
  $("status").textContent = remaining > 1 ? `${remaining} images remaining` : "";
}

function showPrediction(card, prediction, file, name) {
  const part = (selector) => card.querySelector(selector);
  const predicted = multilabel ? prediction.predicted : [prediction.predicted];
  const rows = Object.entries(prediction.probabilities);
  const confidence = multilabel ? "" : ` ${percent(prediction.confidence)}`;
  const answer = predicted.length ? predicted.join(", ") + confidence : "no label";
  const set = (prediction.set ?? []).length > 1 ? `, or one of ${prediction.set.join(", ")}` : "";
  part(".answer").textContent = prediction.rejected ? `unlike the training images (${answer})` : answer + set;
  const count = Math.max(MIN_BARS, predicted.length);
  const show = (n) => part(".bars").replaceChildren(...rows.slice(0, n).map((row) => makeBar(...row, predicted)));
  show(count);
  if (rows.length > count) {
    const more = part(".more");
    more.hidden = false;
    more.textContent = `All ${rows.length.toLocaleString("en")} classes`;
    more.onclick = () => { show(rows.length); more.hidden = true; };
  }
  if (hasGradcam) addGradcam(card, predicted[0] ?? rows[0][0], file, name);
}

function makeBar(label, probability, predicted) {
  const row = document.createElement("li"), text = document.createElement("b");
  const number = document.createElement("span"), line = document.createElement("i");
  text.textContent = label;
  number.textContent = percent(probability);
  line.style.setProperty("--share", `${100 * probability}%`);
  row.classList.toggle("predicted", predicted.includes(label));
  row.append(text, number, line);
  return row;
}

function addGradcam(card, label, file, name) {
  const button = card.querySelector(".gradcam"), preview = card.querySelector("img");
  const caption = card.querySelector("figcaption"), original = preview.src;
  let overlay = null, blank = false;
  const show = (on) => {
    preview.src = on ? overlay : original;
    card.classList.toggle("blank", blank && !on);
    caption.textContent = on ? `Yellow areas speak most for ${label} (Grad-CAM)` : blank ? "no preview" : "";
    button.textContent = on ? "Show the original" : `Why ${label}?`;
    button.setAttribute("aria-pressed", String(on));
  };
  button.hidden = false;
  button.textContent = `Why ${label}?`;
  button.onclick = async () => {
    if (overlay !== null) return show(button.getAttribute("aria-pressed") !== "true");
    blank = card.classList.contains("blank");
    button.disabled = true;
    try {
      const response = await post("gradcam", file, name, { class: label });
      overlay = URL.createObjectURL(await response.blob());
      card.addresses.push(overlay);
      show(true);
    } catch (error) {
      caption.textContent = error instanceof Refused ? error.message : "Grad-CAM failed.";
    }
    button.disabled = false;
  };
}

const addAll = (files) => { for (const file of files) addImage(file, file.name || "pasted"); };

for (const id of ["choose", "take"]) {
  $(id).addEventListener("change", (event) => { addAll(event.target.files); event.target.value = ""; });
}
addEventListener("paste", (event) => addAll(event.clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (event.relatedTarget === null) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  addAll(event.dataTransfer.files);
});
$("clear").addEventListener("click", () => {
  for (const card of $("cards").children) card.addresses.forEach((address) => URL.revokeObjectURL(address));
  queue.length = 0;
  $("cards").replaceChildren();
  $("results").hidden = true;
  runQueue();
});
for (const button of document.querySelectorAll("#examples button")) {
  button.querySelector("img").onerror = () => { button.parentElement.remove(); };
  button.addEventListener("click", async () => {
    const { number, label } = button.dataset;
    try {
      const response = await fetch(`examples/${number}`);
      if (!response.ok) throw new Refused();
      addImage(await response.blob(), `Example ${Number(number) + 1}`, label);
    } catch {
      $("status").textContent = "The example no longer exists.";
    }
  });
}
