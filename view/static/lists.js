// Long tables: a run's steps, and its groups of completions.
// Each view: (main, parameters, state) -> {refresh()}, called where its source has something new, and destroy(), both
// optional. state: {sources, drawn: Set of names, colourOf(name)}.

import {address, h, label, link, number, percent, replace, select} from "./dom.js";
import {ask, exported} from "./data.js";
import {virtualTable} from "./table.js";

const STEP_COLUMNS = [
  "reward",
  "accuracy",
  "normalised_entropy",
  "held_out/accuracy",
  "groups/trained",
  "collapse/completion_length",
  "collapse/truncated_share",
  "loss/value",
  "loss/kl",
  "optim/grad_norm",
  "policy/token_entropy",
  "tokens_per_s",
  "step_s",
];

export async function stepsView(main, parameters, state) {
  const source = parameters.source;
  let rows = [],
    all = false,
    sort = {name: "step", descending: true};
  const holder = h("div", {class: "fill"});
  const toggle = h("input", {
    type: "checkbox",
    onchange: () => {
      all = toggle.checked;
      draw();
    },
  });
  let table = null;

  function draw() {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => name !== "step");
    const chosen = all ? names : STEP_COLUMNS.filter((name) => names.includes(name));
    const value = (row) => row[sort.name];
    rows.sort(
      (a, b) => ((value(a) ?? -Infinity) - (value(b) ?? -Infinity)) * (sort.descending ? -1 : 1) || a.step - b.step,
    );
    table = virtualTable({
      label: "Steps",
      sort,
      onsort: (name) => {
        sort = {name, descending: sort.name === name && !sort.descending};
        draw();
      },
      columns: [
        {
          title: "step",
          sort: "step",
          class: "number",
          cell: (row) => link("rollouts", {source, first_step: row.step, last_step: row.step}, String(row.step)),
        },
        ...chosen.map((name) => ({title: name, sort: name, class: "number", cell: (row) => number(row[name])})),
      ],
      load: async (offset, limit) => ({total: rows.length, rows: rows.slice(offset, offset + limit)}),
    });
    replace(holder, table.element);
    table.refresh();
  }

  async function refresh() {
    const answer = await ask("curves", {source}),
      byStep = new Map();
    for (const kind of ["train", "eval"]) {
      answer[kind].steps.forEach((step, index) => {
        const row = byStep.get(step) || {step};
        for (const [name, values] of Object.entries(answer[kind].values))
          if (values[index] !== null) row[name] = values[index];
        byStep.set(step, row);
      });
    }
    rows = [...byStep.values()];
    draw();
  }

  replace(
    main,
    h("h2", {tabindex: "-1"}, `Steps of ${source}`),
    h("div", {class: "controls"}, h("label", {class: "check"}, toggle, h("span", {}, "all metrics"))),
    holder,
  );
  await refresh();
  return {refresh};
}

const REFUSALS = {
  "": "any",
  no: "not refused",
  any: "refused",
  too_low: "entropy too low",
  too_high: "entropy too high",
  equal_rewards: "equal rewards",
  skipped: "not judged",
};

const RIGHTS = {
  "": "any",
  all: "all right",
  some: "some right",
  none: "none right",
  majority_wrong: "majority wrong",
  unknown: "not known",
};

export function rolloutsView(main, parameters, state) {
  return groupsList(main, "rollouts", parameters, state, {});
}

export function disagreementsView(main, parameters, state) {
  return groupsList(main, "disagreements", parameters, state, {
    right: "majority_wrong",
    sort: "majority",
    descending: "true",
  });
}

async function groupsList(main, view, parameters, state, preset) {
  const given = {...preset, ...parameters},
    source = given.source;
  const go = (changes) => {
    location.hash = address(view, {...parameters, ...changes});
  };
  const field = (name, text, type, more = {}) =>
    label(
      text,
      h("input", {type, value: given[name] || "", ...more, onchange: (event) => go({[name]: event.target.value})}),
    );
  const count = h("p", {class: "note", role: "status"});
  const isEvaluation = state.sources.find((one) => one.name === source)?.kind === "evaluation";
  const columns = [
    {
      title: isEvaluation ? "benchmark" : "step",
      sort: "step",
      class: isEvaluation ? "" : "number",
      cell: (row) => link("group", {source, id: row.id}, row.benchmark || String(row.step)),
    },
    {title: "question", class: "grow", cell: (row) => row.question},
    {title: "majority", class: "short", cell: (row) => (row.majority === null ? "–" : row.majority)},
    {title: "share", sort: "majority", class: "number", cell: (row) => percent(row.majority_share)},
    {title: "gold", class: "short", cell: (row) => row.gold ?? "–"},
    {
      title: "right",
      sort: "right",
      class: "number",
      cell: (row) => (row.num_right === null ? "–" : `${row.num_right}/${row.num}`),
    },
    !isEvaluation && {title: "reward", sort: "reward", class: "number", cell: (row) => number(row.reward)},
    !isEvaluation && {
      title: "min–max",
      sort: "spread",
      class: "number",
      cell: (row) => `${number(row.reward_min)}–${number(row.reward_max)}`,
    },
    {title: "entropy", sort: "entropy", class: "number", cell: (row) => percent(row.entropy)},
    {title: "tokens", sort: "tokens", class: "number", cell: (row) => number(row.tokens)},
    {title: "cut", class: "number", cell: (row) => String(row.num_truncated)},
    !isEvaluation && {title: "training", cell: (row) => row.refused || (row.trained ? "trained" : "–")},
  ].filter(Boolean);
  const table = virtualTable({
    label: "Groups",
    columns,
    sort: {name: given.sort || "step", descending: given.descending === "true"},
    onsort: (name) =>
      go({sort: name, descending: given.sort === name && given.descending !== "true" ? "true" : "false"}),
    openRow: (row) => {
      location.hash = address("group", {source, id: row.id});
    },
    load: (offset, limit) => ask("groups", {...given, offset, limit}),
    ontotal: ({total, more}) => {
      const of = exported && exported.groups[source].total;
      const inFile =
        exported && of > exported.groups[source].rows.length
          ? ` This file holds ${exported.groups[source].rows.length} of ${of} groups: evenly over the steps, ` +
            "and those whose majority is most surely wrong."
          : "";
      const known = state.sources.find((one) => one.name === source);
      const share = known?.indexed ?? 1;
      const unread = share < 1 ? `; ${percent(share)} of the file is read` : "";
      const problem = known?.problem ? ` ${known.problem}` : "";
      count.textContent = `${number(total)}${more ? " and more" : ""} groups${unread}.${inFile}${problem}`;
    },
  });
  replace(
    main,
    h("h2", {tabindex: "-1"}, view === "rollouts" ? `Rollouts of ${source}` : `Where the majority is wrong: ${source}`),
    view === "disagreements" &&
      h(
        "p",
        {class: "hint"},
        "Groups whose most frequent answer differs from the gold answer, the surest first.",
        " Empty where the file has no gold answers.",
      ),
    h(
      "form",
      {class: "controls", onsubmit: (event) => event.preventDefault()},
      field("text", "Text in question or completion", "search", {class: "long"}),
      !isEvaluation && field("first_step", "From step", "number"),
      !isEvaluation && field("last_step", "to step", "number"),
      !isEvaluation && field("reward_min", "Reward from", "number", {step: "any"}),
      !isEvaluation && field("reward_max", "to", "number", {step: "any"}),
      !isEvaluation &&
        label(
          "Refused",
          select(REFUSALS, given.refused || "", (value) => go({refused: value})),
        ),
      label(
        "Correctness",
        select(RIGHTS, given.right || "", (value) => go({right: value})),
      ),
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            location.hash = address(view, {source});
          },
        },
        "clear",
      ),
    ),
    count,
    h("div", {class: "fill"}, table.element),
  );
  await table.refresh();
  return {refresh: table.refresh};
}
