// The curves of all drawn runs over each other.
// Each view: (main, parameters, state) -> {refresh()}, called where its source has something new, and destroy(), both
// optional. state: {sources, drawn: Set of names, colourOf(name)}.

import {h, label, number, replace, select} from "./dom.js";
import {ask} from "./data.js";
import {chart} from "./charts.js";

const OVERVIEW = [
  "reward",
  "accuracy",
  "held_out/accuracy",
  "normalised_entropy",
  "refused/equal_rewards",
  "refused/too_low",
  "refused/too_high",
  "collapse/completion_length",
  "policy/token_entropy",
  "loss/kl",
  "optim/grad_norm",
  "held_out/loss",
  "loss/value",
  "loss/token_accuracy",
  "step_s",
];

const curvesState = {group: "overview", filter: "", reach: null, log: false, range: null};

async function glossaryByName() {
  return new Map((await ask("glossary")).map((entry) => [entry.name, entry]));
}

// One metric's values in all drawn runs; kind: train or eval.
function seriesOf(name, answers, state) {
  const found = [];
  for (const [source, answer] of answers) {
    for (const kind of ["train", "eval"]) {
      const values = answer[kind].values[name];
      if (!values || values.every((value) => value === null)) continue;
      const ends = name === "held_out/accuracy" ? ["held_out/low", "held_out/high"] : [`${name}/low`, `${name}/high`];
      const [low, high] = ends.map((end) => answer[kind].values[end]);
      const there = values.map((value, index) => (value === null ? -1 : index)).filter((index) => index >= 0);
      const of = (column) => column && there.map((index) => column[index]);
      found.push({
        name: source,
        colour: state.colourOf(source),
        isEvaluation: kind === "eval",
        steps: of(answer[kind].steps),
        values: of(values),
        low: low && high ? of(low) : null,
        high: low && high ? of(high) : null,
      });
    }
  }
  return found;
}

export async function curvesView(main, parameters, state) {
  const glossary = await glossaryByName();
  let answers = new Map(),
    charts = [],
    names = [],
    era = 0;
  const grid = h("div", {class: "charts"}),
    table = h("div", {class: "wide"}),
    note = h("p", {class: "note"});
  const first = h("input", {type: "number", min: 0, onchange: () => zoomTyped()});
  const last = h("input", {type: "number", min: 0, onchange: () => zoomTyped()});
  const reach = h("input", {type: "range", min: 0, max: 50, "aria-label": "Smoothing: steps on either side"});
  const shownReach = h("output");
  const groups = h("div");

  function extent() {
    const steps = [...answers.values()].flatMap((answer) => [...answer.train.steps, ...answer.eval.steps]);
    const ends = [Math.min(...steps), Math.max(...steps)];
    return ends[0] < ends[1] ? ends : [ends[0] - 1, ends[0] + 1];
  }

  function zoom(range) {
    curvesState.range = range && range[1] - range[0] > 1e-6 ? range : null;
    const [low, high] = curvesState.range || extent();
    first.value = Math.ceil(low);
    last.value = Math.floor(high);
    for (const one of charts) one.setRange([low, high]);
  }

  function zoomTyped() {
    const range = [Number(first.value), Number(last.value)];
    zoom(range[0] < range[1] ? range : null);
  }

  function draw() {
    for (const one of charts) one.destroy();
    const needle = curvesState.filter.toLowerCase();
    const shown = names.filter((name) =>
      needle
        ? name.toLowerCase().includes(needle)
        : curvesState.group === "overview"
          ? OVERVIEW.includes(name) || /^benchmark\/.*\/avg@\d+$/.test(name)
          : name.split("/")[0] === curvesState.group || (curvesState.group === "times" && /_s$/.test(name)),
    );
    if (!needle && curvesState.group === "overview") shown.sort((a, b) => place(a) - place(b));
    const length = Math.max(0, ...[...answers.values()].map((answer) => answer.train.steps.length));
    const around = curvesState.reach ?? Math.min(50, Math.floor(length / 20));
    reach.value = around;
    shownReach.textContent = around ? `± ${around}` : "off";
    const range = curvesState.range || extent();
    charts = [];
    const figures = shown.map((name) => {
      const series = seriesOf(name, answers, state);
      const one = chart(name, series, {log: curvesState.log, reach: around, range, onrange: zoom});
      charts.push(one);
      return h("figure", {}, h("figcaption", {}, about(name, answers, glossary)), one.element);
    });
    replace(grid, figures);
    for (const one of charts) one.draw();
    note.textContent = shown.length
      ? ""
      : answers.size
        ? "No such metric in what is drawn."
        : "Nothing is drawn: tick a run at the left.";
    zoom(curvesState.range);
  }

  async function refresh() {
    const mine = (era += 1),
      found = new Map();
    for (const source of state.sources.filter((one) => state.drawn.has(one.name) && one.curves)) {
      const answer = await ask("curves", {source: source.name});
      if (answer.train.steps.length + answer.eval.steps.length) found.set(source.name, answer);
    }
    if (mine !== era) return; // a later call has drawn, or will
    answers = found;
    names = [
      ...new Set(
        [...answers.values()].flatMap((answer) => [
          ...Object.keys(answer.train.values),
          ...Object.keys(answer.eval.values),
        ]),
      ),
    ].filter((name) => !/\/(low|high)$/.test(name));
    const prefixes = [...new Set(names.map((name) => name.split("/")[0]))].filter((prefix) =>
      names.some((name) => name.startsWith(`${prefix}/`)),
    );
    replace(
      groups,
      label(
        "Metrics",
        select(
          {overview: "overview", ...Object.fromEntries(prefixes.map((prefix) => [prefix, prefix])), times: "times"},
          curvesState.group,
          (value) => {
            curvesState.group = value;
            draw();
          },
        ),
      ),
    );
    replace(table, runsTable(answers, state));
    const problems = [...answers.entries()].filter(([, answer]) => answer.problem);
    if (answers.size) draw();
    else {
      replace(grid);
      note.textContent = "Nothing to draw: tick a run at the left.";
    }
    if (problems.length) note.textContent = problems.map(([, answer]) => answer.problem).join("; ");
  }

  reach.addEventListener("input", () => {
    curvesState.reach = Number(reach.value);
    draw();
  });
  const log = h("input", {
    type: "checkbox",
    checked: curvesState.log,
    onchange: () => {
      curvesState.log = log.checked;
      draw();
    },
  });
  const filter = h("input", {
    type: "search",
    placeholder: "all names with …",
    oninput: () => {
      curvesState.filter = filter.value;
      draw();
    },
  });
  filter.value = curvesState.filter;
  replace(
    main,
    h("h2", {tabindex: "-1"}, "Curves"),
    table,
    h(
      "div",
      {class: "controls"},
      groups,
      label("Find a metric", filter),
      label("Smoothing (steps)", h("span", {}, reach, shownReach)),
      h("label", {class: "check"}, log, h("span", {}, "log scale")),
      label("From step", first),
      label("to step", last),
      h("button", {type: "button", onclick: () => zoom(null)}, "whole run"),
    ),
    h("p", {class: "hint"}, "Drag across a curve to zoom, double-click to see the whole run."),
    note,
    grid,
  );
  await refresh();
  return {refresh, destroy: () => charts.forEach((one) => one.destroy())};
}

function place(name) {
  const found = OVERVIEW.indexOf(name);
  return found < 0 ? 2.5 : found;
}

function about(name, answers, glossary) {
  const found = [...answers.values()].map((answer) => answer.about[name]).find(Boolean);
  const entry = found && glossary.get(found);
  if (!entry) return h("strong", {}, name);
  return h(
    "details",
    {},
    h("summary", {}, h("strong", {}, name), h("span", {class: "unit"}, entry.unit)),
    h("p", {}, entry.meaning),
    h("p", {}, h("b", {}, "Normal: "), entry.normal),
    entry.advice && h("p", {}, h("b", {}, "If not: "), entry.advice),
  );
}

function runsTable(answers, state) {
  const end = (answer, name, index) => (answer.eval.values[name] || []).filter((value) => value !== null).at(index);
  const rows = [...answers.entries()].map(([name, answer]) => {
    const source = state.sources.find((one) => one.name === name);
    const rewards = (answer.train.values.reward || answer.train.values["loss/value"] || []).filter(
      (value) => value !== null,
    );
    return h(
      "tr",
      {},
      h("th", {scope: "row"}, h("i", {class: "swatch", style: {background: `var(${state.colourOf(name)})`}}), name),
      h("td", {}, source.kind),
      h("td", {}, source.status),
      h("td", {class: "number"}, number(answer.train.steps.at(-1))),
      h("td", {class: "number"}, `${number(rewards[0])} → ${number(rewards.at(-1))}`),
      h(
        "td",
        {class: "number"},
        end(answer, "held_out/accuracy", 0) === undefined
          ? "–"
          : `${number(end(answer, "held_out/accuracy", 0))} → ${number(end(answer, "held_out/accuracy", -1))}`,
      ),
    );
  });
  return (
    rows.length > 0 &&
    h(
      "table",
      {class: "rows plain"},
      h("caption", {class: "hidden"}, "What is drawn"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Run", "Kind", "Status", "Step", "Reward (warm-up: loss)", "Held-out accuracy"].map((title) =>
            h("th", {scope: "col"}, title),
          ),
        ),
      ),
      h("tbody", {}, rows),
    )
  );
}
