// How long somebody was at it, and how long the page merely lay open.

const IDLE_AFTER_MS = 20_000;
const SIGNS = ["pointermove", "pointerdown", "keydown", "wheel", "scroll", "touchmove", "input"];

export function startTiming(form) {
  const { active_s: activeField, idle_s: idleField, typed: typedField, pasted: pastedField } = form.elements;
  let active = 1000 * (Number(activeField.value) || 0);
  let idle = 1000 * (Number(idleField.value) || 0);
  let typed = Number(typedField.value) || 0;
  let pasted = Number(pastedField.value) || 0;
  let counted = performance.now();
  let lastSign = counted;
  let seen = !document.hidden;

  function count() {
    const now = performance.now();
    const until = Math.min(now, lastSign + IDLE_AFTER_MS);
    const busy = seen ? Math.max(0, until - counted) : 0;
    active += busy;
    idle += now - counted - busy;
    counted = now;
  }

  for (const sign of SIGNS) {
    addEventListener(sign, () => { count(); lastSign = counted; }, { passive: true, capture: true });
  }
  document.addEventListener("visibilitychange", () => {
    count();
    seen = !document.hidden;
    lastSign = counted;
  });
  form.addEventListener("input", (event) => {
    if (event.inputType?.startsWith("insertText") || event.inputType?.startsWith("delete")) typed += 1;
    if (event.inputType === "insertFromPaste" || event.inputType === "insertFromDrop") pasted += event.data?.length ?? 0;
  });
  form.addEventListener("paste", (event) => {
    pasted += event.clipboardData?.getData("text").length ?? 0;
  });

  // a draft that was kept on this device knows the time already spent
  form.addEventListener("karat:filled", ({ detail }) => {
    const kept = (name) => Number(detail.get(name)?.[0]) || 0;
    active = Math.max(active, 1000 * kept("active_s"));
    idle = Math.max(idle, 1000 * kept("idle_s"));
    typed = Math.max(typed, kept("typed"));
    pasted = Math.max(pasted, kept("pasted"));
  });

  return {
    /** Whether something was done within the last two minutes. */
    present: () => performance.now() - lastSign < 120_000 && !document.hidden,
    write() {
      count();
      activeField.value = (active / 1000).toFixed(1);
      idleField.value = (idle / 1000).toFixed(1);
      typedField.value = String(typed);
      pastedField.value = String(pasted);
    },
  };
}
