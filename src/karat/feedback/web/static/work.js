// The page of a task: puts the parts together and sends the answer.

import { fill, forsaken, pairsOf, startAutosave } from "./autosave.js";
import { startGroups } from "./groups.js";
import { startKeys } from "./keys.js";
import { showForsaken, showLeftover } from "./leftover.js";
import { Offline, clock, post } from "./net.js";
import { remember } from "./remember.js";
import { fieldOf, startQueue } from "./queue.js";
import { startRank } from "./rank.js";
import { startRelogin } from "./relogin.js";
import { startSpans } from "./spans.js";
import { startTiming } from "./timing.js";

const HEARTBEAT_MS = 90_000;
const root = document.documentElement;
const form = document.getElementById("answer");
const status = document.getElementById("saved");
const messages = document.getElementById("messages");
const submitButton = document.getElementById("submit");
const side = matchMedia("(min-width: 64rem) and (min-height: 40rem)");
let busy = false;
let waiting = null; // what is to be done once somebody has signed in again

function said(text, urgent = false) {
  status.textContent = text;
  status.classList.toggle("waiting", urgent);
}

function complain(texts, kind = "error") {
  const box = document.createElement("div");
  box.setAttribute("role", "alert");
  box.className = kind;
  for (const text of texts) {
    const line = document.createElement("p");
    line.textContent = text;
    box.append(line);
  }
  messages.replaceChildren(...(texts.length ? [box] : []));
  box.scrollIntoView({ block: "nearest" });
}

function setBusy(on) {
  busy = on;
  saver.hold(on);
  for (const button of form.querySelectorAll("button:not([type=button])")) button.disabled = on;
}

const showRelogin = startRelogin(form, {
  goOn() {
    const next = waiting;
    waiting = null;
    queue.flush();
    saver.hold(false);
    if (next) next();
  },
});
const timing = startTiming(form);
const saver = startAutosave(form, { timing, said, sessionEnded: showRelogin });
const queue = startQueue(document.body.dataset.who, {
  said,
  sessionEnded: showRelogin,
  arrived(item, body) {
    const own = item.key === form.elements.submission.value;
    if (own || (isHere(item, body) && !(saver.at() > item.at))) return leave(body.next);
    if (!isHere(item, body)) return said(`Sent ${clock()}`);
    // she has gone on with it meanwhile: nobody is led away from what she types
    complain(["The answer that waited on this device is sent. What you have entered since is not handed in."], "notice");
  },
  refused(item, code, body) {
    if (!isHere(item, body)) return showLeftover(item, body, queue);
    if (item.key === form.elements.submission.value) {
      saver.reopen();
      setBusy(false);
    } else putBack(item, body);
    answered(code, body);
  },
});

/** Whether a kept answer is to the task of this page, whose lease may have been renewed meanwhile. */
function isHere(item, body = item.refused?.body) {
  const { lease } = form.dataset;
  return item.key === form.elements.submission.value || (lease && [fieldOf(item, "lease"), body?.lease].includes(lease));
}

/** The page was left and opened again meanwhile: what was typed is put back, unless something newer stands here. */
function putBack(item, body) {
  if (saver.at() > item.at) return;
  if (1000 * Number(form.dataset.saved) > item.at) return showLeftover(item, body, queue); // from another device
  // under a renewed lease the question may be asked another way: the choice is made again
  const old = fieldOf(item, "lease") === form.dataset.lease ? [] : ["asked", "choice", "way"];
  fill(form, item.pairs.filter(([name]) => !old.includes(name)));
  saver.changed();
}

function leave(next) {
  saver.finish();
  queue.settle(isHere);
  location.replace(next || "/work");
}

function noteSurroundings() {
  timing.write();
  form.elements.layout.value = !side.matches ? "stacked" : form.classList.contains("stacked") ? "column" : "side";
  const width = innerWidth;
  form.elements.width.value = width < 640 ? "phone" : width < 1024 ? "tablet" : width < 2400 ? "desktop" : "wide";
}

function invalidate(fields) {
  for (const node of form.querySelectorAll("[aria-invalid]")) node.removeAttribute("aria-invalid");
  const wrong = [];
  for (const name of fields) {
    const found = name ? form.elements[name] : null;
    const node = found instanceof RadioNodeList ? found[0] : found;
    if (!node) continue;
    node.setAttribute("aria-invalid", "true");
    node.closest("details")?.setAttribute("open", "");
    wrong.push(node);
  }
  // in a rank's box a digit is that response's rank, everywhere else it is the response that comes next
  // a mark is made in the text
  const first = wrong[0]?.matches(".rank-select select") ? document.getElementById("pool-head")
    : fields.includes("span") ? form.querySelector(".spannable") : wrong[0];
  first?.focus({ preventScroll: false });
}

function answered(code, body) {
  if (code === 200) return leave(body.next);
  if (code === 422 && body.messages) {
    complain(Object.values(body.messages));
    return invalidate(Object.keys(body.messages));
  }
  if (code === 409 && body.confirm) {
    let field = form.elements.confirm;
    if (!field) {
      field = document.createElement("input");
      field.type = "hidden";
      field.name = "confirm";
      form.append(field);
    }
    field.value = body.confirm;
    if (body.submission) form.elements.submission.value = body.submission;
    document.getElementById("submit-word").textContent = "Submit anyway";
    complain([body.message]);
    return submitButton.focus();
  }
  return complain([body.error?.message ?? "The server did not take the answer. It is kept on this page; try again."]);
}

async function send(submitter) {
  if (busy) return;
  noteSurroundings();
  const path = submitter?.getAttribute("formaction") ?? "/work";
  const pairs = pairsOf(form, submitter);
  const key = form.elements.submission.value;
  setBusy(true);
  said("Sending …");
  try {
    const { status: code, body } = await post(path, pairs);
    if (code === 401) {
      waiting = () => send(submitter);
      setBusy(false);
      saver.hold(true);
      said("Not sent yet", true);
      return showRelogin();
    }
    if (code === 429 || code >= 500) throw new Offline(`status ${code}`);
    setBusy(false);
    said("");
    answered(code, body);
  } catch (error) {
    if (!(error instanceof Offline)) throw error;
    const kept = queue.put(path, pairs, key);
    if (kept) {
      saver.finish();
      queue.settle(isHere); // this answer takes the place of one that was not taken
      complain(["There is no network. Your answer is kept on this device and is sent as soon as there is one."], "notice");
    } else {
      setBusy(false);
      complain(["There is no network, and this device cannot keep the answer. Leave the page open and submit again."]);
    }
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.submitter);
});
form.addEventListener("input", () => invalidate([]));
// A choice made by a key takes along the frame of a group in which it stands already: two frames would be two answers
form.addEventListener("change", ({ target }) => {
  const at = document.activeElement;
  if (target.type === "radio" && at?.type === "radio" && at.name === target.name) target.focus({ preventScroll: true });
});

// A conversation opens where its last turn begins: there is the question. A prompt of one turn is read from its beginning.
const conversation = document.querySelector(".prompt > .body");
const turns = conversation.querySelectorAll(".turn");
if (turns.length > 1) {
  conversation.scrollTop = [...turns].at(-1).getBoundingClientRect().top - conversation.getBoundingClientRect().top;
}

// Guidelines beside the task
const guideButton = document.getElementById("guide-button");
function setGuide(open) {
  root.dataset.guide = open ? "open" : "closed";
  guideButton.setAttribute("aria-expanded", String(open));
  remember("karat:guide", open ? "open" : "closed");
  document.getElementById("guide").inert = !open;
}
guideButton.setAttribute("role", "button");
guideButton.setAttribute("aria-controls", "guide");
guideButton.setAttribute("aria-expanded", String(root.dataset.guide === "open"));
guideButton.addEventListener("click", (event) => {
  event.preventDefault();
  setGuide(root.dataset.guide !== "open");
});
document.getElementById("guide-close").addEventListener("click", () => {
  setGuide(false);
  guideButton.focus();
});

// Covered texts are covered for screen readers too
const cover = form.elements.uncovered;
function veil() {
  for (const node of form.querySelectorAll(".veil")) node.inert = !cover.checked;
}
if (cover) {
  cover.addEventListener("change", veil);
  form.addEventListener("karat:filled", veil);
  veil();
}

// A reason is asked for only where somebody wants to give one; on a narrow page its box is always there
document.getElementById("with-reason")?.addEventListener("change", (event) => {
  if (event.target.checked) document.getElementById("reason").focus();
});

// What each kind adds to the keys
function scaleKeys(key) {
  if (key !== "ArrowLeft" && key !== "ArrowRight") return false;
  if (document.activeElement?.matches("pre, .table")) return false;
  const points = [...form.querySelectorAll("[data-scale]")];
  const by = key === "ArrowLeft" ? -1 : 1;
  const at = points.findIndex((point) => point.checked);
  const middle = (points.length - 1) / 2;
  const to = at < 0 ? (by < 0 ? Math.ceil(middle) - 1 : Math.floor(middle) + 1) : at + by;
  points[Math.min(Math.max(to, 0), points.length - 1)].click();
  return true;
}
const changed = () => saver.changed();
const special = {
  comparison: () => scaleKeys,
  rating: () => startGroups(form),
  step_marks: () => startGroups(form),
  ranking: () => startRank(form, changed),
  span_marks: () => startSpans(form, changed),
}[form.dataset.kind]?.() ?? (() => false);

startKeys({ form, special, submit: () => form.requestSubmit(submitButton) });

queue.start();
for (const { item, discard } of forsaken(form)) showForsaken(item, discard);

setInterval(async () => {
  if (!timing.present() || !form.dataset.lease) return;
  try {
    const { status: code } = await post("/work/heartbeat", [["lease", form.dataset.lease]]);
    if (code === 401) showRelogin();
  } catch (error) {
    if (!(error instanceof Offline)) throw error;
  }
}, HEARTBEAT_MS);

// a page that comes back by the back button is an old page: ask the server
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
