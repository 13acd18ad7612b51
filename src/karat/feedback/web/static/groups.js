// Several questions below one another (attributes, steps): a digit answers the one that is next, arrows change which.

export function startGroups(form) {
  const groups = [...form.querySelectorAll("[data-group]")];
  let held = null;

  const answered = (group) => group.querySelector(":checked") || group.querySelector("input[type=number]")?.value;
  const current = () => held ?? groups.find((group) => !answered(group)) ?? groups.at(-1);

  function show(group, { scroll = true } = {}) {
    for (const each of groups) each.classList.toggle("now", each === group);
    if (scroll) group?.scrollIntoView({ block: "nearest" });
  }

  function update(scroll = false) {
    // what follows the first wrong step stands back: it need not be judged
    const wrong = groups.findIndex((group) => group.querySelector('input[value="-1"]:checked'));
    if (form.dataset.kind === "step_marks") {
      groups.forEach((group, i) => group.classList.toggle("after", wrong >= 0 && i > wrong));
    }
    show(current(), { scroll });
  }

  form.addEventListener("focusin", (event) => {
    const group = event.target.closest("[data-group]");
    if (group) {
      held = group;
      show(group, { scroll: false });
    }
  });
  form.addEventListener("change", () => update());
  form.addEventListener("karat:filled", () => update());
  update();

  return (key) => {
    if (key === "ArrowDown" || key === "ArrowUp") {
      const next = groups[groups.indexOf(current()) + (key === "ArrowDown" ? 1 : -1)];
      if (!next) return true;
      held = next;
      document.activeElement?.blur();
      show(next);
      return true;
    }
    const group = current();
    const input = /^[0-9]$/.test(key) ? group?.querySelector(`[data-nth="${key}"]`) : null;
    if (!input) return false;
    document.activeElement?.blur();
    input.click();
    const i = groups.indexOf(group);
    held = groups.slice(i + 1).find((each) => !answered(each)) ?? group;
    update(true);
    return true;
  };
}
