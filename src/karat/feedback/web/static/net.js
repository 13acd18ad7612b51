// One way to send fields to the server, and what its answers mean.

export class Offline extends Error {}

/** Posts name-value pairs. Returns {status, body}; throws Offline where nobody answered. */
export async function post(path, pairs) {
  const reply = await send(path, pairs);
  if (reply.status !== 403) return answerOf(reply);
  const found = await pulse();
  // somebody else is signed in here now: for whoever wrote this the session is over
  if (found && found.annotator !== document.body.dataset.who) return { status: 401, body: {} };
  return answerOf(renewToken(found) ? await send(path, pairs) : reply);
}

const tokens = () => document.querySelectorAll('input[name="csrf"]');

async function send(path, pairs) {
  let reply;
  try {
    reply = await fetch(path, {
      method: "POST",
      body: new URLSearchParams(pairs.filter(([name]) => name !== "csrf")),
      headers: { Accept: "application/json", "X-CSRF": tokens()[0]?.value ?? "" },
      credentials: "same-origin",
    });
  } catch (error) {
    throw new Offline(String(error));
  }
  // a gateway that answers for a server which is away is no answer
  if (reply.status >= 502 && reply.status <= 504) throw new Offline(`status ${reply.status}`);
  return reply;
}

async function answerOf(reply) {
  return { status: reply.status, body: await bodyOf(reply) };
}

/** Takes over the token of a session that the same person opened elsewhere. */
function renewToken(found) {
  if (!found || found.csrf === tokens()[0]?.value) return false;
  for (const field of tokens()) field.value = found.csrf;
  return true;
}

/** Who is signed in: {annotator, csrf}, or null. Throws Offline. */
export async function pulse() {
  let reply;
  try {
    reply = await fetch("/api/v1/me", { headers: { Accept: "application/json" }, credentials: "same-origin" });
  } catch (error) {
    throw new Offline(String(error));
  }
  return reply.ok ? bodyOf(reply) : null;
}

/** What a reply says, {} where it is not JSON. Throws Offline where it did not arrive whole: then nothing is known. */
async function bodyOf(reply) {
  let text;
  try {
    text = await reply.text();
  } catch (error) {
    throw new Offline(String(error));
  }
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

/** The clock as raters see it: 12:03:04. */
export function clock(date = new Date()) {
  return date.toLocaleTimeString("en-GB");
}
