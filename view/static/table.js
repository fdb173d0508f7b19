// A table of which only the visible rows are in the page: 100,000 rows scroll as 100 do.

import {h} from "./dom.js";

const ROW = 30,
  PAGE = 100,
  AROUND = 15;

// columns: [{title, cell(row) -> text or element, class, sort}]; load(offset, limit) -> {total, rows}; sort: {name,
// descending}; onsort(name); openRow(row). Returns {element, refresh()}: refresh where there is something new.
export function virtualTable({label, columns, load, sort = {}, onsort = null, openRow = null, ontotal = () => {}}) {
  const body = h("tbody");
  const table = h(
    "table",
    {class: "rows"},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        columns.map((column) => heading(column)),
      ),
    ),
    body,
  );
  const box = h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": label}, table);
  let total = 0,
    pages = new Map(),
    asked = 0;

  function heading(column) {
    const isSorted = column.sort && sort.name === column.sort;
    return h(
      "th",
      {
        scope: "col",
        class: column.class,
        "aria-sort": isSorted ? (sort.descending ? "descending" : "ascending") : null,
      },
      column.sort && onsort
        ? h(
            "button",
            {type: "button", onclick: () => onsort(column.sort)},
            column.title,
            isSorted ? (sort.descending ? " ▼" : " ▲") : "",
          )
        : column.title,
    );
  }

  async function page(index, era) {
    if (pages.has(index)) return;
    pages.set(index, null);
    const answer = await load(index * PAGE, PAGE);
    if (era !== asked) return;
    pages.set(index, answer.rows);
    total = answer.total;
    ontotal(answer);
    render();
  }

  function render() {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - AROUND);
    const last = Math.min(total, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + AROUND);
    const rows = [];
    for (let index = first; index < last; index++) {
      const there = pages.get(Math.floor(index / PAGE));
      if (there === undefined) page(Math.floor(index / PAGE), asked);
      const row = there && there[index % PAGE];
      rows.push(
        h(
          "tr",
          {
            "aria-rowindex": index + 2,
            onclick: row && openRow ? (event) => event.target.closest("a") || openRow(row) : null,
          },
          columns.map((column, place) =>
            h(place ? "td" : "th", {class: column.class, scope: place ? null : "row"}, row ? column.cell(row) : "…"),
          ),
        ),
      );
    }
    table.setAttribute("aria-rowcount", total + 1);
    body.replaceChildren(space(first), ...rows, space(total - last));
  }

  function space(count) {
    return h("tr", {"aria-hidden": "true", class: "space", style: {height: `${Math.max(0, count) * ROW}px`}});
  }

  box.addEventListener("scroll", () => render());
  new ResizeObserver(() => render()).observe(box);
  return {
    element: box,
    async refresh() {
      const era = (asked += 1),
        index = Math.floor(box.scrollTop / ROW / PAGE);
      const answer = await load(index * PAGE, PAGE);
      if (era !== asked) return;
      pages = new Map([[index, answer.rows]]);
      total = answer.total;
      ontotal(answer);
      render();
    },
  };
}
