// Looks every second whether both answers are there, and then goes on. Without this script the page reloads itself.
// What is typed and not sent yet is kept in this tab: she may have to finish a task first.

const EVERY_MS = 1000;
const place = document.querySelector("[data-waiting]");

async function look() {
  try {
    const answer = await fetch(place.dataset.waiting, { headers: { Accept: "application/json" } });
    // signed out, or another page now: the server says where to go
    if (!answer.ok || !(await answer.json()).waiting) {
      location.assign("/arena");
      return;
    }
  } catch {
    // no network just now; the question waits on the server
  }
  setTimeout(look, EVERY_MS);
}

function keep(form) {
  const name = `karat-asks-${form.dataset.asks}`;
  const box = form.elements.prompt;
  try {
    if (!box.value) box.value = sessionStorage.getItem(name) ?? "";
    sessionStorage.setItem(name, box.value);
    box.addEventListener("input", () => sessionStorage.setItem(name, box.value));
    form.addEventListener("submit", () => sessionStorage.removeItem(name)); // refused, it comes back in the box
  } catch {
    // a browser that keeps nothing still sends
  }
}

const form = document.querySelector("[data-asks]");
if (form) keep(form);
if (place) setTimeout(look, EVERY_MS);
