"use strict";
// A click on a heading sorts its table by that column, and again the other way round; dashes stay at the end.
const words = new Intl.Collator("en", { numeric: true });

function before(a, b, way) {
  if (a.dataset.key === undefined) return way * words.compare(a.textContent, b.textContent);
  if (a.dataset.key === "" || b.dataset.key === "") return (a.dataset.key === "") - (b.dataset.key === "");
  return way * (Number(a.dataset.key) - Number(b.dataset.key));
}

function sort(heading) {
  const way = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  const body = heading.closest("table").tBodies[0], column = heading.cellIndex;
  body.append(...[...body.rows].sort((a, b) => before(a.cells[column], b.cells[column], way)));
}

for (const heading of document.querySelectorAll("thead th")) heading.addEventListener("click", () => sort(heading));

// Paper has nothing to unfold.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => (part.open = true)));
