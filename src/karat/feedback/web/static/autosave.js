// Drafts: on this device at once, on the server within a second; and back again after a reload.

import { Offline, clock, post } from "./net.js";

const SERVER_AFTER_MS = 600; // of quiet
const SERVER_AT_MOST_MS = 900; // of typing without a pause
const KEEP_MS = 7 * 86_400_000;
const NOT_KEPT = new Set(["csrf", "submission", "lease", "supersedes", "confirm"]);

export function pairsOf(form, submitter = null) {
  return [...new FormData(form, submitter)].filter(([, value]) => typeof value === "string");
}

/** Puts name-value pairs back into the form. */
export function fill(form, pairs) {
  const values = new Map();
  for (const [name, value] of pairs) values.set(name, [...(values.get(name) ?? []), value]);
  for (const control of form.elements) {
    if (!control.name || NOT_KEPT.has(control.name) || control.tagName === "BUTTON" || control.name === "span") continue;
    const given = values.get(control.name) ?? [];
    if (control.type === "radio" || control.type === "checkbox") control.checked = given.includes(control.value);
    else if (given.length) control.value = given[0];
  }
  form.dispatchEvent(new CustomEvent("karat:filled", { detail: values }));
}

const PREFIX = "karat:draft:";

/** What this person typed on this device for tasks that she has not any more: {item: {at, pairs}, discard}. */
export function forsaken(form) {
  const { who, lease } = form.dataset;
  const here = new Set([form.elements.text?.value, form.elements.reason?.value].map((text) => text?.trim()));
  const found = [];
  if (!lease) return found; // an earlier answer is changed: what is in hand waits
  try {
    for (const place of Object.keys(localStorage)) {
      const own = place.startsWith(`${PREFIX}${who}:`) ? place.slice(`${PREFIX}${who}:`.length) : "";
      if (!own || own === lease) continue;
      const { at, pairs } = JSON.parse(localStorage.getItem(place));
      const typed = pairs.filter(([name, value]) => ["text", "reason"].includes(name) && value.trim());
      const discard = () => localStorage.removeItem(place);
      // the same task under a renewed lease has it in its form already
      if (typed.every(([, value]) => here.has(value.trim()))) discard();
      else found.push({ item: { at: 1000 * at, pairs: typed }, discard });
    }
  } catch {
    // nothing is kept here
  }
  return found;
}

export function startAutosave(form, { timing, said, sessionEnded }) {
  const place = `${PREFIX}${form.dataset.who}:${form.dataset.lease}`;
  let dirty = false;
  let mirrored = true;
  let timer = 0;
  let since = 0; // when the first change was made that the server has not got
  let sending = false;
  let done = false;
  let held = false;
  let keptAt = 0; // when what stands in the form was kept on this device
  let base = Number(form.dataset.saved); // which draft of the server's it was made from, by when that was saved

  function draft() {
    timing.write();
    return pairsOf(form).filter(([name]) => !NOT_KEPT.has(name));
  }

  function mirror() {
    try {
      localStorage.setItem(place, JSON.stringify({ at: keptAt / 1000, base, same: !dirty, pairs: draft() }));
      mirrored = true;
    } catch {
      mirrored = false;
    }
  }

  /** The server has what was sent; what was entered meanwhile was made from it. */
  function acknowledged(savedAt) {
    said(`Saved ${clock()}`);
    base = savedAt;
    if (!done) mirror();
  }

  /** Whether what this device keeps is newer than the draft in the page. Two clocks are compared only where they must be. */
  function isNewer(kept) {
    if (kept.same) return false;
    return kept.base === base || kept.at > base;
  }

  async function save() {
    clearTimeout(timer);
    if (sending || done || held || !dirty) return;
    sending = true;
    dirty = false;
    since = 0;
    try {
      const { status, body } = await post("/work/draft", [["lease", form.dataset.lease], ...draft()]);
      if (status === 200) acknowledged(body.saved_at);
      else if (status === 401) {
        dirty = true;
        held = true; // until somebody has signed in again
        sessionEnded();
      } else {
        said(body.error?.message ?? "Not saved on the server; kept on this device", true);
      }
    } catch (error) {
      if (!(error instanceof Offline)) throw error;
      dirty = true;
      said(mirrored ? "Offline: kept on this device" : "Offline: not saved", true);
      timer = setTimeout(save, 5000);
    } finally {
      sending = false;
    }
    if (dirty && !timer && !held) later();
  }

  function later() {
    clearTimeout(timer);
    since ||= performance.now();
    const wait = Math.min(SERVER_AFTER_MS, Math.max(0, since + SERVER_AT_MOST_MS - performance.now()));
    timer = setTimeout(() => { timer = 0; save(); }, wait);
  }

  function changed() {
    if (done) return;
    dirty = true;
    keptAt = Date.now();
    mirror();
    if (form.dataset.lease && !held) later();
  }

  function restore() {
    let kept = null;
    try {
      for (const key of Object.keys(localStorage)) {
        if (!key.startsWith(PREFIX)) continue;
        const { at } = JSON.parse(localStorage.getItem(key)) ?? {};
        if (!(Date.now() - 1000 * at < KEEP_MS)) localStorage.removeItem(key);
      }
      kept = JSON.parse(localStorage.getItem(place));
    } catch {
      return;
    }
    keptAt = 1000 * (kept?.at ?? 0);
    if (kept && form.dataset.lease && isNewer(kept)) {
      fill(form, kept.pairs);
      said("Restored from this device");
      changed();
    }
  }

  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  addEventListener("online", save);
  document.addEventListener("visibilitychange", () => { if (document.hidden) save(); });
  addEventListener("beforeunload", (event) => {
    if (dirty && !mirrored && !done) event.preventDefault();
  });
  if (form.dataset.lease) restore();

  return {
    changed,
    save,
    /** When what stands in the form was typed, by this device's clock; 0 = not here. */
    at: () => keptAt,
    /** While an answer is on its way no draft follows it. */
    hold(on) {
      held = on;
      clearTimeout(timer);
      if (!on && dirty) later();
    },
    /** The answer has been handed in: there is nothing left to keep. */
    finish() {
      done = true;
      clearTimeout(timer);
      try {
        localStorage.removeItem(place);
      } catch {
        // there was nothing
      }
    },
    /** It was not taken after all. */
    reopen() { done = false; },
  };
}
