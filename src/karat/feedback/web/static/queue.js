// Answers that could not be sent wait on this device, under the key that makes sending them twice harmless.

import { Offline, post } from "./net.js";

const PLACE = "karat:queue";
const RETRY_MS = [1000, 2000, 4000, 8000, 15_000];

function read() {
  try {
    return JSON.parse(localStorage.getItem(PLACE)) ?? [];
  } catch {
    return [];
  }
}

function write(items) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(items));
    return true;
  } catch {
    return false;
  }
}

export function startQueue(who, { said, sessionEnded, arrived, refused }) {
  let tries = 0;
  let timer = 0;
  let running = false;
  let gone = false; // a page that was left may live on unseen: what is refused there nobody would read
  const mine = () => read().filter((item) => item.who === who);
  const drop = (key) => write(read().filter((item) => item.key !== key));

  function report() {
    const n = mine().length;
    if (n) said(`Offline: ${n === 1 ? "1 answer waits" : `${n} answers wait`} on this device`, true);
  }

  async function flush() {
    clearTimeout(timer);
    if (running || gone) return;
    running = true;
    try {
      for (const item of mine()) {
        const { status, body } = await post(item.path, item.pairs);
        if (gone && status !== 200) return; // it waits for the next page
        if (status === 401) {
          sessionEnded();
          return;
        }
        if (status === 429 || status >= 500) throw new Offline(`status ${status}`);
        drop(item.key);
        if (status === 200) arrived(item, body);
        else refused(item, status, body);
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

  addEventListener("pagehide", () => { gone = true; clearTimeout(timer); });
  addEventListener("pageshow", (event) => { if (event.persisted) { gone = false; flush(); } });
  addEventListener("online", () => { tries = 0; flush(); });
  if (mine().length) flush();
  return {
    /** Keeps an answer until it is sent. Returns whether this device could keep it. */
    put(path, pairs, key) {
      const kept = write([...read().filter((item) => item.key !== key), { who, path, pairs, key, at: Date.now() }]);
      report();
      timer = setTimeout(flush, RETRY_MS[0]);
      return kept;
    },
    flush,
    holds: (key) => mine().some((item) => item.key === key),
  };
}
