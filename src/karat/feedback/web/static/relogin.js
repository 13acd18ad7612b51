// The session has ended: sign in again on the same page, then go on where it stopped.

import { Offline, pulse } from "./net.js";

export function startRelogin(form, { goOn }) {
  const dialog = document.getElementById("relogin");
  const inner = document.getElementById("relogin-form");
  const message = document.getElementById("relogin-message");

  function tell(text) {
    message.hidden = !text;
    message.textContent = text;
  }

  async function check(found) {
    if (!found) return tell("You are not signed in yet.");
    if (found.annotator !== form.dataset.who) return tell("That is another account. Sign in with the one you began with.");
    for (const field of document.querySelectorAll('input[name="csrf"]')) field.value = found.csrf;
    tell("");
    dialog.close();
    goOn();
  }

  async function signIn() {
    const given = Object.fromEntries(new FormData(inner));
    let reply;
    try {
      reply = await fetch("/api/v1/session", {
        method: "POST",
        body: JSON.stringify({ ...given, kind: "browser" }),
        headers: { Accept: "application/json", "Content-Type": "application/json" },
        credentials: "same-origin",
      });
    } catch {
      return tell("There is no network at the moment; try again.");
    }
    if (reply.status === 429) return tell("Too many attempts. Wait a while, then try again.");
    if (!reply.ok) return tell("The login and the password do not match.");
    inner.elements.password.value = "";
    try {
      await check(await pulse());
    } catch (error) {
      if (error instanceof Offline) tell("There is no network at the moment; try again.");
    }
  }

  inner.addEventListener("submit", (event) => {
    event.preventDefault();
    signIn();
  });
  document.getElementById("relogin-again").addEventListener("click", async () => {
    try {
      await check(await pulse());
    } catch (error) {
      if (error instanceof Offline) tell("There is no network at the moment; try again.");
    }
  });
  return () => {
    if (!dialog.open) dialog.showModal();
  };
}
