"use strict";
// Tooltips for the nearest mark (mouse and touch) and legends that show and hide series.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  let hot = null;

  function nearest(area, x, y) {
    let best = null, least = 28 * 28;
    for (const mark of area.querySelectorAll(".mark")) {
      const box = mark.getBoundingClientRect();
      if (!box.width && !box.height) continue; // hidden series, or the drawing for the other screen width
      const dx = Math.max(box.left - x, 0, x - box.right), dy = Math.max(box.top - y, 0, y - box.bottom);
      const distance = dx * dx + dy * dy;
      if (distance <= least) { best = mark; least = distance; }
    }
    return best;
  }

  function show(event) {
    const area = event.target.closest && event.target.closest("svg, .widths");
    const mark = area && nearest(area, event.clientX, event.clientY);
    if (hot && hot !== mark) hot.classList.remove("hot");
    hot = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("hot");
    tip.textContent = mark.dataset.tip;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(event.clientX + 14, 6), innerWidth - box.width - 6);
    const above = event.clientY - box.height - 12;
    tip.style.left = left + "px";
    tip.style.top = (above > 4 ? above : event.clientY + 18) + "px";
  }

  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  for (const button of document.querySelectorAll("[data-toggle]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      const figure = button.closest("figure");
      for (const group of figure.querySelectorAll("[data-series]")) {
        if (group.dataset.series === button.dataset.toggle) group.classList.toggle("off", !on);
      }
    });
  }
})();
