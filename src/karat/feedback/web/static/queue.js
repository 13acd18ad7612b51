// Answers that could not be sent wait on this device, under the key that makes sending them twice harmless.
// One that the server does not take stays here too, marked, until its task is answered or somebody has read why: a page
// that was left lives on for a while, unseen and not yet told that it was left, and may be the one that gets the reply.

import { Offline, post } from "./net.js";

const PREFIX = "karat:queue:"; // a place an answer, so that pages at once do not write over each other's
const RETRY_MS = [1000, 2000, 4000, 8000, 15_000];

function load(place) {
  try {
    return JSON.parse(localStorage.getItem(place));
  } catch {
    return null;
  }
}

function store(item) {
  try {
    localStorage.setItem(PREFIX + item.key, JSON.stringify(item));
    return true;
  } catch {
    return false;
  }
}

function drop(key) {
  try {
    localStorage.removeItem(PREFIX + key);
  } catch {
    // there was nothing
  }
}

function all() {
  try {
    const places = Object.keys(localStorage).filter((place) => place.startsWith(PREFIX));
    return places.map(load).filter(Boolean).sort((one, other) => one.at - other.at);
  } catch {
    return [];
  }
}

/** The value of a field of an answer that waits, "" where it has none. */
export const fieldOf = (item, name) => item.pairs.find(([key]) => key === name)?.[1] ?? "";

export function startQueue(who, { said, sessionEnded, arrived, refused }) {
  let tries = 0;
  let timer = 0;
  let running = false;
  const told = new Set(); // refusals that this page has shown
  const mine = () => all().filter((item) => item.who === who);
  const waiting = () => mine().filter((item) => !item.refused);

  function report() {
    const n = waiting().length;
    if (n) said(`Offline: ${n === 1 ? "1 answer waits" : `${n} answers wait`} on this device`, true);
  }

  function tell(items = mine()) {
    for (const item of items) {
      const name = `${item.key} ${item.at}`;
      if (!item.refused || told.has(name)) continue;
      told.add(name);
      refused(item, item.refused.status, item.refused.body);
    }
  }

  async function flush() {
    clearTimeout(timer);
    if (running) return;
    running = true;
    try {
      for (const item of waiting()) {
        const { status, body } = await post(item.path, item.pairs);
        if (status === 401) {
          sessionEnded();
          return;
        }
        if (status === 408 || status === 429 || status >= 500) throw new Offline(`status ${status}`);
        const now = load(PREFIX + item.key);
        const same = now?.at === item.at; // nobody has handed in another answer meanwhile
        if (status === 200) {
          if (same) drop(item.key);
          arrived(item, body);
        } else if (same) {
          const marked = { ...item, refused: { status, body } };
          store(marked);
          tell([marked]);
        }
      }
      tries = 0;
    } catch (error) {
      if (!(error instanceof Offline)) throw error;
      report();
      timer = setTimeout(flush, RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
    } finally {
      running = false;
    }
  }

  addEventListener("pagehide", () => clearTimeout(timer));
  addEventListener("online", () => { tries = 0; flush(); });
  addEventListener("storage", (event) => {
    if (!event.key?.startsWith(PREFIX) || !event.newValue) return;
    tell(); // another page had the reply
    if (running || !waiting().length) return;
    clearTimeout(timer);
    timer = setTimeout(flush, RETRY_MS[0]);
  });
  return {
    /** Shows what was not taken and sends what waits, once the page is ready for both. */
    start() {
      tell();
      if (waiting().length) flush();
    },
    /** Keeps an answer until it is sent. Returns whether this device could keep it. */
    put(path, pairs, key) {
      const kept = store({ who, path, pairs, key, at: Date.now() });
      report();
      timer = setTimeout(flush, RETRY_MS[0]);
      return kept;
    },
    flush,
    drop,
    /** Forgets what was not taken of a task that is answered now. */
    settle(isIt) {
      for (const item of mine()) if (item.refused && isIt(item)) drop(item.key);
    },
  };
}
