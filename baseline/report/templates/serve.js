"use strict";
// Images go to /predict one by one, a few at a time, so that each has its own answer as soon as it is there.

const AT_ONCE = 4, SHOWN = 5, TRIES = 6;
const facts = document.body.dataset;
const many = facts.many === "1", maps = facts.maps === "1", megabytes = Number(facts.megabytes);
const $ = (id) => document.getElementById(id);
const percent = (share) => share > 0 && share < 0.001 ? "< 0.1\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`;
const later = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const waiting = [];
let running = 0;

class Refused extends Error {}

async function ask(address, image, name, fields = {}) {
  if (image.size === 0) throw new Refused("The file is empty.");
  if (image.size > megabytes * 1e6) throw new Refused(`The file has more than ${megabytes} MB.`);
  for (let tried = 1; ; tried++) {
    const form = new FormData();
    form.append("image", image, name);
    for (const [key, value] of Object.entries(fields)) form.append(key, value);
    let answer;
    try {
      answer = await fetch(address, { method: "POST", body: form });
    } catch {
      throw new Refused("The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 503 && tried < TRIES) {
      await later(Number(answer.headers.get("Retry-After")) || 1);
      continue;
    }
    const told = await answer.json().catch(() => ({}));
    throw new Refused(told.error || `The server answered ${answer.status}.`);
  }
}

function add(image, name, label = null) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  const image = part("img"), address = URL.createObjectURL(image);
  card.addresses = [address];
  card.classList.add("waits");
  part(".name").textContent = label === null ? name : `${name}, labelled ${label || "nothing"} in the run`;
  image.alt = name;
  image.onerror = () => {  // a TIFF, say
    card.classList.add("blank");
    part("figcaption").textContent = "no preview";
  };
  image.src = address;
  $("found").prepend(card);
  $("results").hidden = false;
  card.scrollIntoView({ block: "nearest" });
  waiting.push(async () => {
    if (!card.isConnected) return;
    try {
      const answer = await ask("predict", image, name);
      tell(card, (await answer.json()).predictions[0], image, name);
    } catch (error) {
      if (!(error instanceof Refused)) console.error(error);
      part(".answer").textContent = error instanceof Refused ? error.message : "This failed.";
      card.classList.add("wrong");
    }
    card.classList.remove("waits");
  });
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running++;
    waiting.shift()().finally(() => { running--; next(); });
  }
  const left = running + waiting.length;
  $("said").textContent = left > 1 ? `${left} images to go` : "";
}

function tell(card, found, image, name) {
  const part = (selector) => card.querySelector(selector);
  const told = many ? found.predicted : [found.predicted];
  const rows = Object.entries(found.probabilities);
  const sure = many ? "" : ` ${percent(found.confidence)}`;
  part(".answer").textContent = told.length ? told.join(", ") + sure : "none of its labels";
  const least = Math.max(SHOWN, told.length);
  const show = (count) => part(".bars").replaceChildren(...rows.slice(0, count).map((row) => bar(...row, told)));
  show(least);
  if (rows.length > least) {
    const more = part(".more");
    more.hidden = false;
    more.textContent = `All ${rows.length.toLocaleString("en")} classes`;
    more.onclick = () => { show(rows.length); more.hidden = true; };
  }
  if (maps) offer(card, told[0] ?? rows[0][0], image, name);
}

function bar(name, share, told) {
  const row = document.createElement("li"), label = document.createElement("b");
  const number = document.createElement("span"), line = document.createElement("i");
  label.textContent = name;
  number.textContent = percent(share);
  line.style.setProperty("--share", `${100 * share}%`);
  row.classList.toggle("sure", told.includes(name));
  row.append(label, number, line);
  return row;
}

function offer(card, name, image, file) {
  const button = card.querySelector(".look"), image = card.querySelector("img"), words = card.querySelector("figcaption");
  const plain = image.src;
  let looked = null, blank = false;
  const show = (on) => {
    image.src = on ? looked : plain;
    card.classList.toggle("blank", blank && !on);
    words.textContent = on ? `Yellow speaks most for ${name} (Grad-CAM)` : blank ? "no preview" : "";
    button.textContent = on ? "Show the image alone" : `What speaks for ${name}?`;
    button.setAttribute("aria-pressed", String(on));
  };
  button.hidden = false;
  button.textContent = `What speaks for ${name}?`;
  button.onclick = async () => {
    if (looked !== null) return show(button.getAttribute("aria-pressed") !== "true");
    blank = card.classList.contains("blank");
    button.disabled = true;
    try {
      const answer = await ask("gradcam", image, file, { class: name });
      looked = URL.createObjectURL(await answer.blob());
      card.addresses.push(looked);
      show(true);
    } catch (error) {
      words.textContent = error instanceof Refused ? error.message : "This failed.";
    }
    button.disabled = false;
  };
}

const addAll = (files) => { for (const file of files) add(file, file.name || "pasted"); };

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
  for (const card of $("found").children) card.addresses.forEach((each) => URL.revokeObjectURL(each));
  waiting.length = 0;
  $("found").replaceChildren();
  $("results").hidden = true;
  next();
});
for (const button of document.querySelectorAll("#examples button")) {
  button.querySelector("img").onerror = () => { button.parentElement.remove(); };
  button.addEventListener("click", async () => {
    const { number, label } = button.dataset;
    try {
      const answer = await fetch(`examples/${number}`);
      if (!answer.ok) throw new Refused();
      add(await answer.blob(), `Example ${Number(number) + 1}`, label);
    } catch {
      $("said").textContent = "The example is no longer there.";
    }
  });
}
