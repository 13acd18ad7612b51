// Looks every second whether both answers are there, and then goes on. Without this script the page reloads itself.

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

if (place) setTimeout(look, EVERY_MS);
