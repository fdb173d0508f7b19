// The other views. Each one: (main, parameters, state) -> {refresh()}, called where its source has something new, and
// destroy(), both optional. state: {sources, drawn: Set of names, colourOf(name), restart()}.

import { address, h, label, link, number, percent, replace, select } from "./dom.js";
import { ask, exported } from "./data.js";
import { chart, histogram } from "./charts.js";
import { virtualTable } from "./table.js";

const OVERVIEW = [
  "reward", "accuracy", "held_out/accuracy", "normalised_entropy", "refused/equal_rewards", "refused/too_low", "refused/too_high",
  "collapse/completion_length", "policy/token_entropy", "loss/kl", "optim/grad_norm", "held_out/loss", "loss/value", "loss/token_accuracy", "step_s"];
const curvesState = {group: "overview", filter: "", reach: null, log: false, range: null};

export async function glossaryByName() {
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
      found.push({name: source, colour: state.colourOf(source), isEvaluation: kind === "eval", steps: of(answer[kind].steps),
        values: of(values), low: low && high ? of(low) : null, high: low && high ? of(high) : null});
    }
  }
  return found;
}

export async function curvesView(main, parameters, state) {
  const glossary = await glossaryByName();
  let answers = new Map(), charts = [], names = [], era = 0;
  const grid = h("div", {class: "charts"}), table = h("div", {class: "wide"}), note = h("p", {class: "note"});
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
    const shown = names.filter((name) => (needle ? name.toLowerCase().includes(needle)
      : curvesState.group === "overview" ? OVERVIEW.includes(name) || /^benchmark\/.*\/avg@\d+$/.test(name)
        : name.split("/")[0] === curvesState.group || (curvesState.group === "times" && /_s$/.test(name))));
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
    note.textContent = shown.length ? "" : answers.size ? "No such metric in what is drawn." : "Nothing is drawn: tick a run at the left.";
    zoom(curvesState.range);
  }

  async function refresh() {
    const mine = (era += 1), found = new Map();
    for (const source of state.sources.filter((one) => state.drawn.has(one.name) && one.curves)) {
      const answer = await ask("curves", {source: source.name});
      if (answer.train.steps.length + answer.eval.steps.length) found.set(source.name, answer);
    }
    if (mine !== era) return; // a later call has drawn, or will
    answers = found;
    names = [...new Set([...answers.values()].flatMap((answer) => [...Object.keys(answer.train.values), ...Object.keys(answer.eval.values)]))]
      .filter((name) => !/\/(low|high)$/.test(name));
    const prefixes = [...new Set(names.map((name) => name.split("/")[0]))].filter((prefix) => names.some((name) => name.startsWith(`${prefix}/`)));
    replace(groups, label("Metrics", select(
      {overview: "overview", ...Object.fromEntries(prefixes.map((prefix) => [prefix, prefix])), times: "times"},
      curvesState.group, (value) => { curvesState.group = value; draw(); })));
    replace(table, runsTable(answers, state));
    const problems = [...answers.entries()].filter(([, answer]) => answer.problem);
    if (answers.size) draw();
    else { replace(grid); note.textContent = "Nothing to draw: tick a run at the left."; }
    if (problems.length) note.textContent = problems.map(([, answer]) => answer.problem).join("; ");
  }

  reach.addEventListener("input", () => { curvesState.reach = Number(reach.value); draw(); });
  const log = h("input", {type: "checkbox", checked: curvesState.log, onchange: () => { curvesState.log = log.checked; draw(); }});
  const filter = h("input", {type: "search", placeholder: "all names with …", oninput: () => { curvesState.filter = filter.value; draw(); }});
  filter.value = curvesState.filter;
  replace(main, h("h2", {tabindex: "-1"}, "Curves"), table,
    h("div", {class: "controls"}, groups, label("Find a metric", filter), label("Smoothing (steps)", h("span", {}, reach, shownReach)),
      h("label", {class: "check"}, log, h("span", {}, "log scale")),
      label("From step", first), label("to step", last), h("button", {type: "button", onclick: () => zoom(null)}, "whole run")),
    h("p", {class: "hint"}, "Drag across a curve to zoom, double-click to see the whole run."), note, grid);
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
  return h("details", {}, h("summary", {}, h("strong", {}, name), h("span", {class: "unit"}, entry.unit)),
    h("p", {}, entry.meaning), h("p", {}, h("b", {}, "Normal: "), entry.normal), entry.advice && h("p", {}, h("b", {}, "If not: "), entry.advice));
}

function runsTable(answers, state) {
  const end = (answer, name, index) => (answer.eval.values[name] || []).filter((value) => value !== null).at(index);
  const rows = [...answers.entries()].map(([name, answer]) => {
    const source = state.sources.find((one) => one.name === name);
    const rewards = (answer.train.values.reward || answer.train.values["loss/value"] || []).filter((value) => value !== null);
    return h("tr", {}, h("th", {scope: "row"}, h("i", {class: "swatch", style: {background: `var(${state.colourOf(name)})`}}), name),
      h("td", {}, source.kind), h("td", {}, source.status), h("td", {class: "number"}, number(answer.train.steps.at(-1))),
      h("td", {class: "number"}, `${number(rewards[0])} → ${number(rewards.at(-1))}`),
      h("td", {class: "number"}, end(answer, "held_out/accuracy", 0) === undefined ? "–"
        : `${number(end(answer, "held_out/accuracy", 0))} → ${number(end(answer, "held_out/accuracy", -1))}`));
  });
  return rows.length > 0 && h("table", {class: "rows plain"}, h("caption", {class: "hidden"}, "What is drawn"),
    h("thead", {}, h("tr", {}, ["Run", "Kind", "Status", "Step", "Reward (warm-up: loss)", "Held-out accuracy"].map((title) => h("th", {scope: "col"}, title)))),
    h("tbody", {}, rows));
}

const STEP_COLUMNS = ["reward", "accuracy", "normalised_entropy", "held_out/accuracy", "groups/trained", "collapse/completion_length",
  "collapse/truncated_share", "loss/value", "loss/kl", "optim/grad_norm", "policy/token_entropy", "tokens_per_s", "step_s"];

export async function stepsView(main, parameters, state) {
  const source = parameters.source;
  let rows = [], all = false, sort = {name: "step", descending: true};
  const holder = h("div", {class: "fill"});
  const toggle = h("input", {type: "checkbox", onchange: () => { all = toggle.checked; draw(); }});
  let table = null;

  function draw() {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => name !== "step");
    const chosen = all ? names : STEP_COLUMNS.filter((name) => names.includes(name));
    const value = (row) => row[sort.name];
    rows.sort((a, b) => ((value(a) ?? -Infinity) - (value(b) ?? -Infinity)) * (sort.descending ? -1 : 1) || a.step - b.step);
    table = virtualTable({
      label: "Steps", sort, onsort: (name) => { sort = {name, descending: sort.name === name && !sort.descending}; draw(); },
      columns: [
        {title: "step", sort: "step", class: "number", cell: (row) => link("rollouts", {source, first_step: row.step, last_step: row.step}, String(row.step))},
        ...chosen.map((name) => ({title: name, sort: name, class: "number", cell: (row) => number(row[name])}))],
      load: async (offset, limit) => ({total: rows.length, rows: rows.slice(offset, offset + limit)})});
    replace(holder, table.element);
    table.refresh();
  }

  async function refresh() {
    const answer = await ask("curves", {source}), byStep = new Map();
    for (const kind of ["train", "eval"]) {
      answer[kind].steps.forEach((step, index) => {
        const row = byStep.get(step) || {step};
        for (const [name, values] of Object.entries(answer[kind].values)) if (values[index] !== null) row[name] = values[index];
        byStep.set(step, row);
      });
    }
    rows = [...byStep.values()];
    draw();
  }

  replace(main, h("h2", {tabindex: "-1"}, `Steps of ${source}`),
    h("div", {class: "controls"}, h("label", {class: "check"}, toggle, h("span", {}, "all metrics"))), holder);
  await refresh();
  return {refresh};
}

const REFUSALS = {"": "any", no: "not refused", any: "refused", too_low: "entropy too low", too_high: "entropy too high", equal_rewards: "equal rewards", skipped: "not judged"};
const RIGHTS = {"": "any", all: "all right", some: "some right", none: "none right", majority_wrong: "majority wrong", unknown: "not known"};

export function rolloutsView(main, parameters, state) {
  return groupsList(main, "rollouts", parameters, state, {});
}

export function disagreementsView(main, parameters, state) {
  return groupsList(main, "disagreements", parameters, state, {right: "majority_wrong", sort: "majority", descending: "true"});
}

async function groupsList(main, view, parameters, state, preset) {
  const given = {...preset, ...parameters}, source = given.source;
  const go = (changes) => { location.hash = address(view, {...parameters, ...changes}); };
  const field = (name, text, type, more = {}) => label(text, h("input", {type, value: given[name] || "", ...more,
    onchange: (event) => go({[name]: event.target.value})}));
  const count = h("p", {class: "note", role: "status"});
  const isEvaluation = state.sources.find((one) => one.name === source)?.kind === "evaluation";
  const columns = [
    {title: isEvaluation ? "benchmark" : "step", sort: "step", class: isEvaluation ? "" : "number",
      cell: (row) => link("group", {source, id: row.id}, row.benchmark || String(row.step))},
    {title: "question", class: "grow", cell: (row) => row.question},
    {title: "majority", class: "short", cell: (row) => (row.majority === null ? "–" : row.majority)},
    {title: "share", sort: "majority", class: "number", cell: (row) => percent(row.majority_share)},
    {title: "gold", class: "short", cell: (row) => row.gold ?? "–"},
    {title: "right", sort: "right", class: "number", cell: (row) => (row.num_right === null ? "–" : `${row.num_right}/${row.num}`)},
    !isEvaluation && {title: "reward", sort: "reward", class: "number", cell: (row) => number(row.reward)},
    !isEvaluation && {title: "min–max", sort: "spread", class: "number", cell: (row) => `${number(row.reward_min)}–${number(row.reward_max)}`},
    {title: "entropy", sort: "entropy", class: "number", cell: (row) => percent(row.entropy)},
    {title: "tokens", sort: "tokens", class: "number", cell: (row) => number(row.tokens)},
    {title: "cut", class: "number", cell: (row) => String(row.num_truncated)},
    !isEvaluation && {title: "training", cell: (row) => row.refused || (row.trained ? "trained" : "–")}].filter(Boolean);
  const table = virtualTable({
    label: "Groups", columns, sort: {name: given.sort || "step", descending: given.descending === "true"},
    onsort: (name) => go({sort: name, descending: given.sort === name && given.descending !== "true" ? "true" : "false"}),
    openRow: (row) => { location.hash = address("group", {source, id: row.id}); },
    load: (offset, limit) => ask("groups", {...given, offset, limit}),
    ontotal: ({total, more}) => {
      const of = exported && exported.groups[source].total;
      const inFile = exported && of > exported.groups[source].rows.length
        ? ` This file holds ${exported.groups[source].rows.length} of ${of} groups: evenly over the steps, and those whose majority is most surely wrong.` : "";
      const known = state.sources.find((one) => one.name === source);
      const share = known?.indexed ?? 1;
      count.textContent = `${total.toLocaleString("en-US")}${more ? " and more" : ""} groups${share < 1 ? `; ${percent(share)} of the file is read` : ""}.${inFile}${known?.problem ? ` ${known.problem}` : ""}`;
    }});
  replace(main, h("h2", {tabindex: "-1"}, view === "rollouts" ? `Rollouts of ${source}` : `Where the majority is wrong: ${source}`),
    view === "disagreements" && h("p", {class: "hint"}, "Groups whose most frequent answer differs from the gold answer, the surest first. Empty where the file has no gold answers."),
    h("form", {class: "controls", onsubmit: (event) => event.preventDefault()},
      field("text", "Text in question or completion", "search", {class: "long"}),
      !isEvaluation && field("first_step", "From step", "number"), !isEvaluation && field("last_step", "to step", "number"),
      !isEvaluation && field("reward_min", "Reward from", "number", {step: "any"}), !isEvaluation && field("reward_max", "to", "number", {step: "any"}),
      !isEvaluation && label("Refused", select(REFUSALS, given.refused || "", (value) => go({refused: value}))),
      label("Correctness", select(RIGHTS, given.right || "", (value) => go({right: value}))),
      h("button", {type: "button", onclick: () => { location.hash = address(view, {source}); }}, "clear")),
    count, h("div", {class: "fill"}, table.element));
  await table.refresh();
  return {refresh: table.refresh};
}

export async function histogramsView(main, {source}) {
  const holder = h("div");
  let found = null;
  const inputs = Object.fromEntries(["a0", "a1", "b0", "b1"].map((name) => [name, h("input", {type: "number", onchange: () => draw()})]));

  function counts(part, kind, first, last) {
    const sums = part.edges.slice(1).map(() => 0);
    found.steps.forEach((step, row) => {
      if (step >= first && step <= last) part[kind][row].forEach((count, bin) => { sums[bin] += count; });
    });
    return sums;
  }

  function draw() {
    const ends = (first, last) => [inputs[first].value === "" ? -Infinity : Number(inputs[first].value), inputs[last].value === "" ? Infinity : Number(inputs[last].value)];
    const hasSecond = inputs.b0.value !== "" || inputs.b1.value !== "";
    const sections = [["length", "Length of completions", "tokens"], ["reward", "Reward of completions", "reward"]].filter(([name]) => found[name]).map(([name, title, unit]) => {
      const part = found[name], parts = [{name: "bars", counts: counts(part, "all", ...ends("a0", "a1"))}];
      if (hasSecond) parts.push({name: "line", counts: counts(part, "all", ...ends("b0", "b1"))});
      const [right, wrong] = ["right", "wrong"].map((kind) => counts(part, kind, ...ends("a0", "a1")));
      const isJudged = name === "length" && right.some(Boolean) && wrong.some(Boolean);
      return h("section", {"aria-label": title}, h("h3", {}, title), histogram(title, unit, part.edges, parts),
        isJudged && [h("h4", {}, "Right completions (bars) and wrong ones (line)"), histogram("Length of right and wrong completions", unit, part.edges, [{counts: right}, {counts: wrong}])],
        h("details", {}, h("summary", {}, "Numbers"), h("table", {class: "rows plain"},
          h("thead", {}, h("tr", {}, ["from", "to", "completions", hasSecond && "second range"].filter(Boolean).map((text) => h("th", {scope: "col"}, text)))),
          h("tbody", {}, parts[0].counts.map((count, bin) => h("tr", {}, h("th", {scope: "row"}, number(part.edges[bin])), h("td", {}, number(part.edges[bin + 1])),
            h("td", {class: "number"}, number(count)), hasSecond && h("td", {class: "number"}, number(parts[1].counts[bin]))))))));
    });
    replace(holder, sections.length ? h("div", {class: "histogram-grid"}, sections) : h("p", {class: "note"}, "No completions are recorded yet."));
  }

  async function refresh() {
    found = await ask("histograms", {source});
    draw();
  }

  replace(main, h("h2", {tabindex: "-1"}, `Histograms of ${source}`),
    h("div", {class: "controls"}, label("Bars: from step", inputs.a0), label("to step", inputs.a1), label("Line: from step", inputs.b0), label("to step", inputs.b1)), holder);
  await refresh();
  return {refresh};
}

export async function configurationView(main, {source, other, differing}, state) {
  const mine = await ask("configuration", {source});
  const theirs = other ? await ask("configuration", {source: other}) : null;
  const same = (key) => JSON.stringify(mine[key]) === JSON.stringify(theirs[key]);
  const keys = [...new Set([...Object.keys(mine), ...Object.keys(theirs || {})])].filter((key) => !theirs || differing !== "true" || !same(key));
  const shown = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const others = Object.fromEntries([["", "nothing"], ...state.sources.filter((one) => one.name !== source).map((one) => [one.name, one.name])]);
  const only = h("input", {type: "checkbox", checked: differing === "true", onchange: () => { location.hash = address("configuration", {source, other, differing: only.checked}); }});
  replace(main, h("h2", {tabindex: "-1"}, `Configuration of ${source}`),
    h("div", {class: "controls"}, label("Compare with", select(others, other || "", (value) => { location.hash = address("configuration", {source, other: value, differing: Boolean(value)}); })),
      theirs && h("label", {class: "check"}, only, h("span", {}, "only what differs"))),
    theirs && keys.length === 0 && h("p", {class: "note"}, "Nothing differs."),
    h("div", {class: "wide"}, h("table", {class: "rows plain config"},
      h("thead", {}, h("tr", {}, ["Key", source, theirs && other].filter(Boolean).map((title) => h("th", {scope: "col"}, title)))),
      h("tbody", {}, keys.map((key) => h("tr", {class: theirs && !same(key) ? "differs" : null}, h("th", {scope: "row"}, key),
        h("td", {}, shown(mine[key])), theirs && h("td", {}, shown(theirs[key]))))))));
  return {};
}

export async function resultsView(main, {source}, state) {
  const kind = state.sources.find((one) => one.name === source)?.kind;
  const holder = h("div", {class: "wide"});
  async function refresh() {
    const found = await ask("results", {source});
    const content = !Object.keys(found).length ? h("p", {class: "note"}, "No result yet.")
      : kind === "evaluation" ? evaluation(found) : kind === "pipeline" ? pipeline(found, source, state) : tree(found);
    const parts = state.sources.filter((one) => one.parent === source);
    replace(holder, content, parts.length > 0 && [h("h3", {}, "Parts"), h("ul", {}, parts.map((one) =>
      h("li", {}, link(one.kind === "evaluation" || !one.curves ? "results" : "curves", {source: one.name}, one.name), ` (${one.kind})`)))]);
  }
  replace(main, h("h2", {tabindex: "-1"}, `Result of ${source}`), holder);
  await refresh();
  return {refresh};
}

function interval(one) {
  return one ? `${number(one.value)} [${number(one.low)}, ${number(one.high)}]` : "–";
}

function evaluation({benchmarks = {}, ...head}) {
  const names = Object.keys(benchmarks), all = Object.values(benchmarks);
  const metrics = [...new Set(all.flatMap((one) => Object.keys(one)))].filter((name) => name.includes("@"));
  const others = ["num_questions", "num_samples", "truncated_share", "unparsable_share", "timed_out_share", "mean_completion_tokens", "normalised_semantic_entropy"];
  const row = (name, cell) => h("tr", {}, h("th", {scope: "row"}, name), all.map((one) => h("td", {class: "number"}, cell(one))));
  return [
    h("table", {class: "rows plain"}, h("thead", {}, h("tr", {}, ["", ...names].map((title) => h("th", {scope: "col"}, title)))),
      h("tbody", {}, metrics.map((name) => row(name, (one) => interval(one[name]))), others.map((name) => row(name, (one) => number(one[name]))))),
    h("details", {}, h("summary", {}, "What decided it"),
      tree({...head, protocol: Object.fromEntries(Object.entries(benchmarks).map(([name, one]) => [name, one.protocol]))}))];
}

function pipeline({stages = []}, source, state) {
  const titles = ["Stage", "Kind", "Starts from", "Done", "Metric", "Before", "After", "Steps", "Sampled tokens", "Seconds", "What it gave"];
  return h("table", {class: "rows plain"}, h("thead", {}, h("tr", {}, titles.map((title) => h("th", {scope: "col"}, title)))),
    h("tbody", {}, stages.map((one) => {
      const part = state.sources.find((other) => other.parent === source && other.name.endsWith(`-${one.name}`));
      return h("tr", {}, h("th", {scope: "row"}, part ? link(part.curves ? "curves" : "results", {source: part.name}, one.name) : one.name),
        [one.kind, one.starts_from, one.done ? "yes" : "no", one.metric, [interval(one.before)], [interval(one.after)], number(one.steps), number(one.num_sampled_tokens), number(one.seconds && Math.round(one.seconds)), one.gave]
          .map((cell) => h("td", {class: Array.isArray(cell) ? "number" : null}, cell ?? "–")));
    })));
}

function tree(value) {
  if (value === null || typeof value !== "object") return typeof value === "number" ? number(value) : String(value);
  if (Array.isArray(value) && value.every((one) => one === null || typeof one !== "object")) return value.join(", ");
  return h("dl", {class: "tree"}, Object.entries(value).map(([key, one]) => [h("dt", {}, key), h("dd", {}, tree(one))]));
}

export async function glossaryView(main) {
  const entries = await ask("glossary"), body = h("tbody");
  const filter = h("input", {type: "search", oninput: () => draw()});
  function draw() {
    const needle = filter.value.toLowerCase();
    replace(body, entries.filter((one) => Object.values(one).join(" ").toLowerCase().includes(needle)).map((one) =>
      h("tr", {}, h("th", {scope: "row"}, one.name.split(/(?<=[/_])/).map((part) => [part, h("wbr")])), [one.unit, one.meaning, one.normal, one.advice].map((text) => h("td", {}, text)))));
  }
  replace(main, h("h2", {tabindex: "-1"}, "What the metrics mean"), h("div", {class: "controls"}, label("Find", filter)),
    h("div", {class: "wide"}, h("table", {class: "rows plain prose"}, h("thead", {}, h("tr", {}, ["Metric", "Unit", "Meaning", "Normal", "If it is not"].map((title) => h("th", {scope: "col"}, title)))), body)));
  draw();
  return {};
}
