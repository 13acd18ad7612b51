// What a browser keeps between visits. A module of its own: page.js would run again for whoever imports it.

export function remember(name, value) {
  try {
    if (value) localStorage.setItem(name, value);
    else localStorage.removeItem(name);
  } catch {
    // a browser that keeps nothing still works
  }
}
