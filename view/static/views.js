// Histograms, configuration, results and the glossary.
// Each view: (main, parameters, state) -> {refresh()}, called where its source has something new, and destroy(), both
// optional. state: {sources, drawn: Set of names, colourOf(name)}.

import {address, h, label, link, number, replace, select} from "./dom.js";
import {ask} from "./data.js";
import {histogram} from "./charts.js";

export async function histogramsView(main, {source}) {
  const holder = h("div");
  let found = null;
  const inputs = Object.fromEntries(
    ["a0", "a1", "b0", "b1"].map((name) => [name, h("input", {type: "number", onchange: () => draw()})]),
  );

  function counts(part, kind, first, last) {
    const sums = part.edges.slice(1).map(() => 0);
    found.steps.forEach((step, row) => {
      if (step >= first && step <= last)
        part[kind][row].forEach((count, bin) => {
          sums[bin] += count;
        });
    });
    return sums;
  }

  function draw() {
    const ends = (first, last) => [
      inputs[first].value === "" ? -Infinity : Number(inputs[first].value),
      inputs[last].value === "" ? Infinity : Number(inputs[last].value),
    ];
    const hasSecond = inputs.b0.value !== "" || inputs.b1.value !== "";
    const sections = [
      ["length", "Length of completions", "tokens"],
      ["reward", "Reward of completions", "reward"],
    ]
      .filter(([name]) => found[name])
      .map(([name, title, unit]) => {
        const part = found[name],
          parts = [{name: "bars", counts: counts(part, "all", ...ends("a0", "a1"))}];
        if (hasSecond) parts.push({name: "line", counts: counts(part, "all", ...ends("b0", "b1"))});
        const [right, wrong] = ["right", "wrong"].map((kind) => counts(part, kind, ...ends("a0", "a1")));
        const isJudged = name === "length" && right.some(Boolean) && wrong.some(Boolean);
        return h(
          "section",
          {"aria-label": title},
          h("h3", {}, title),
          histogram(title, unit, part.edges, parts),
          isJudged && [
            h("h4", {}, "Right completions (bars) and wrong ones (line)"),
            histogram("Length of right and wrong completions", unit, part.edges, [{counts: right}, {counts: wrong}]),
          ],
          h(
            "details",
            {},
            h("summary", {}, "Numbers"),
            h(
              "table",
              {class: "rows plain"},
              h(
                "thead",
                {},
                h(
                  "tr",
                  {},
                  ["from", "to", "completions", hasSecond && "second range"]
                    .filter(Boolean)
                    .map((text) => h("th", {scope: "col"}, text)),
                ),
              ),
              h(
                "tbody",
                {},
                parts[0].counts.map((count, bin) =>
                  h(
                    "tr",
                    {},
                    h("th", {scope: "row"}, number(part.edges[bin])),
                    h("td", {}, number(part.edges[bin + 1])),
                    h("td", {class: "number"}, number(count)),
                    hasSecond && h("td", {class: "number"}, number(parts[1].counts[bin])),
                  ),
                ),
              ),
            ),
          ),
        );
      });
    replace(
      holder,
      sections.length
        ? h("div", {class: "histogram-grid"}, sections)
        : h("p", {class: "note"}, "No completions are recorded yet."),
    );
  }

  async function refresh() {
    found = await ask("histograms", {source});
    draw();
  }

  replace(
    main,
    h("h2", {tabindex: "-1"}, `Histograms of ${source}`),
    h(
      "div",
      {class: "controls"},
      label("Bars: from step", inputs.a0),
      label("to step", inputs.a1),
      label("Line: from step", inputs.b0),
      label("to step", inputs.b1),
    ),
    holder,
  );
  await refresh();
  return {refresh};
}

export async function configurationView(main, {source, other, differing}, state) {
  const mine = await ask("configuration", {source});
  const theirs = other ? await ask("configuration", {source: other}) : null;
  const same = (key) => JSON.stringify(mine[key]) === JSON.stringify(theirs[key]);
  const keys = [...new Set([...Object.keys(mine), ...Object.keys(theirs || {})])].filter(
    (key) => !theirs || differing !== "true" || !same(key),
  );
  const shown = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const others = Object.fromEntries([
    ["", "nothing"],
    ...state.sources.filter((one) => one.name !== source).map((one) => [one.name, one.name]),
  ]);
  const only = h("input", {
    type: "checkbox",
    checked: differing === "true",
    onchange: () => {
      location.hash = address("configuration", {source, other, differing: only.checked});
    },
  });
  replace(
    main,
    h("h2", {tabindex: "-1"}, `Configuration of ${source}`),
    h(
      "div",
      {class: "controls"},
      label(
        "Compare with",
        select(others, other || "", (value) => {
          location.hash = address("configuration", {source, other: value, differing: Boolean(value)});
        }),
      ),
      theirs && h("label", {class: "check"}, only, h("span", {}, "only what differs")),
    ),
    theirs && keys.length === 0 && h("p", {class: "note"}, "Nothing differs."),
    h(
      "div",
      {class: "wide"},
      h(
        "table",
        {class: "rows plain config"},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Key", source, theirs && other].filter(Boolean).map((title) => h("th", {scope: "col"}, title)),
          ),
        ),
        h(
          "tbody",
          {},
          keys.map((key) =>
            h(
              "tr",
              {class: theirs && !same(key) ? "differs" : null},
              h("th", {scope: "row"}, key),
              h("td", {}, shown(mine[key])),
              theirs && h("td", {}, shown(theirs[key])),
            ),
          ),
        ),
      ),
    ),
  );
  return {};
}

export async function resultsView(main, {source}, state) {
  const kind = state.sources.find((one) => one.name === source)?.kind;
  const holder = h("div", {class: "wide"});
  async function refresh() {
    const found = await ask("results", {source});
    const content = !Object.keys(found).length
      ? h("p", {class: "note"}, "No result yet.")
      : kind === "evaluation"
        ? evaluation(found)
        : kind === "pipeline"
          ? pipeline(found, source, state)
          : tree(found);
    const parts = state.sources.filter((one) => one.parent === source);
    replace(
      holder,
      content,
      parts.length > 0 && [
        h("h3", {}, "Parts"),
        h(
          "ul",
          {},
          parts.map((one) =>
            h(
              "li",
              {},
              link(one.kind === "evaluation" || !one.curves ? "results" : "curves", {source: one.name}, one.name),
              ` (${one.kind})`,
            ),
          ),
        ),
      ],
    );
  }
  replace(main, h("h2", {tabindex: "-1"}, `Result of ${source}`), holder);
  await refresh();
  return {refresh};
}

function interval(one) {
  return one ? `${number(one.value)} [${number(one.low)}, ${number(one.high)}]` : "–";
}

function evaluation({benchmarks = {}, ...head}) {
  const names = Object.keys(benchmarks),
    all = Object.values(benchmarks);
  const metrics = [...new Set(all.flatMap((one) => Object.keys(one)))].filter((name) => name.includes("@"));
  const others = [
    "num_questions",
    "num_samples",
    "truncated_share",
    "unparsable_share",
    "timed_out_share",
    "mean_completion_tokens",
    "normalised_semantic_entropy",
  ];
  const row = (name, cell) =>
    h(
      "tr",
      {},
      h("th", {scope: "row"}, name),
      all.map((one) => h("td", {class: "number"}, cell(one))),
    );
  return [
    h(
      "table",
      {class: "rows plain"},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["", ...names].map((title) => h("th", {scope: "col"}, title)),
        ),
      ),
      h(
        "tbody",
        {},
        metrics.map((name) => row(name, (one) => interval(one[name]))),
        others.map((name) => row(name, (one) => number(one[name]))),
      ),
    ),
    h(
      "details",
      {},
      h("summary", {}, "What decided it"),
      tree({
        ...head,
        protocol: Object.fromEntries(Object.entries(benchmarks).map(([name, one]) => [name, one.protocol])),
      }),
    ),
  ];
}

function pipeline({stages = []}, source, state) {
  const titles = [
    "Stage",
    "Kind",
    "Starts from",
    "Done",
    "Metric",
    "Before",
    "After",
    "Steps",
    "Sampled tokens",
    "Seconds",
    "What it gave",
  ];
  return h(
    "table",
    {class: "rows plain"},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        titles.map((title) => h("th", {scope: "col"}, title)),
      ),
    ),
    h(
      "tbody",
      {},
      stages.map((one) => {
        const part = state.sources.find((other) => other.parent === source && other.name.endsWith(`-${one.name}`));
        return h(
          "tr",
          {},
          h(
            "th",
            {scope: "row"},
            part ? link(part.curves ? "curves" : "results", {source: part.name}, one.name) : one.name,
          ),
          [
            one.kind,
            one.starts_from,
            one.done ? "yes" : "no",
            one.metric,
            [interval(one.before)],
            [interval(one.after)],
            number(one.steps),
            number(one.num_sampled_tokens),
            number(one.seconds && Math.round(one.seconds)),
            one.gave,
          ].map((cell) => h("td", {class: Array.isArray(cell) ? "number" : null}, cell ?? "–")),
        );
      }),
    ),
  );
}

function tree(value) {
  if (value === null || typeof value !== "object") return typeof value === "number" ? number(value) : String(value);
  if (Array.isArray(value) && value.every((one) => one === null || typeof one !== "object")) return value.join(", ");
  return h(
    "dl",
    {class: "tree"},
    Object.entries(value).map(([key, one]) => [h("dt", {}, key), h("dd", {}, tree(one))]),
  );
}

export async function glossaryView(main) {
  const entries = await ask("glossary"),
    body = h("tbody");
  const filter = h("input", {type: "search", oninput: () => draw()});
  function draw() {
    const needle = filter.value.toLowerCase();
    replace(
      body,
      entries
        .filter((one) => Object.values(one).join(" ").toLowerCase().includes(needle))
        .map((one) =>
          h(
            "tr",
            {},
            h(
              "th",
              {scope: "row"},
              one.name.split(/(?<=[/_])/).map((part) => [part, h("wbr")]),
            ),
            [one.unit, one.meaning, one.normal, one.advice].map((text) => h("td", {}, text)),
          ),
        ),
    );
  }
  replace(
    main,
    h("h2", {tabindex: "-1"}, "What the metrics mean"),
    h("div", {class: "controls"}, label("Find", filter)),
    h(
      "div",
      {class: "wide"},
      h(
        "table",
        {class: "rows plain prose"},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Metric", "Unit", "Meaning", "Normal", "If it is not"].map((title) => h("th", {scope: "col"}, title)),
          ),
        ),
        body,
      ),
    ),
  );
  draw();
  return {};
}
