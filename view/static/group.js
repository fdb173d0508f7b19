// One group: its completions side by side, and the same question at other steps.

import {h, link, number, percent, replace, select, label} from "./dom.js";
import {ask} from "./data.js";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const ORDERS = {sampled: "as sampled", cluster: "by cluster", reward: "by reward"};

// Of each cluster {letter, place, size, answer}, the largest first; completions without an answer have no letter.
export function clusters(completions) {
  const found = new Map();
  for (const one of completions) {
    if (one.answer === null) continue;
    const cluster = found.get(one.cluster) || {size: 0, answer: one.answer, correct: one.correct};
    cluster.size += 1;
    found.set(one.cluster, cluster);
  }
  const ordered = [...found.entries()].sort((a, b) => b[1].size - a[1].size);
  ordered.forEach(([, cluster], place) => Object.assign(cluster, {place, letter: LETTERS[place] || `${place + 1}`}));
  return new Map(ordered);
}

export async function groupView(main, {source, id}) {
  const group = await ask("group", {source, id});
  const found = clusters(group.completions);
  const cards = h("div", {class: "cards"});
  let order = "sampled",
    shaded = false;
  const hasTokens = group.completions.some((one) => one.tokens);

  function draw() {
    const numbered = group.completions.map((one, index) => ({...one, index}));
    const place = (one) => (one.answer === null ? 1000 : found.get(one.cluster).place);
    if (order === "cluster") numbered.sort((a, b) => place(a) - place(b) || a.index - b.index);
    if (order === "reward")
      numbered.sort((a, b) => (b.reward ?? b.correct ?? 0) - (a.reward ?? a.correct ?? 0) || a.index - b.index);
    replace(
      cards,
      numbered.map((one) => card(one, found.get(one.cluster), shaded)),
    );
  }

  const shade = h("input", {
    type: "checkbox",
    onchange: () => {
      shaded = shade.checked;
      draw();
    },
  });
  replace(
    main,
    h(
      "h2",
      {tabindex: "-1"},
      group.benchmark
        ? `${group.benchmark}, question ${group.question_id}`
        : `Step ${group.step}, question ${group.question_id}`,
    ),
    h(
      "p",
      {class: "bar-links"},
      group.previous !== null && link("group", {source, id: group.previous}, "← previous group"),
      group.next !== null && link("group", {source, id: group.next}, "next group →"),
      link("question", {source, question_id: group.question_id}, "this question at all steps"),
      !group.benchmark &&
        link("rollouts", {source, first_step: group.step, last_step: group.step}, `all groups of step ${group.step}`),
    ),
    facts(group, found),
    h(
      "div",
      {class: "controls"},
      label(
        "Order",
        select(ORDERS, order, (value) => {
          order = value;
          draw();
        }),
      ),
      hasTokens &&
        h("label", {class: "check"}, shade, h("span", {}, "shade tokens by log-probability (darker: less likely)")),
    ),
    cards,
  );
  draw();
  return {};
}

function facts(group, found) {
  const right = {true: "right", false: "wrong", null: "not known"};
  return h(
    "section",
    {class: "facts", "aria-label": "The question"},
    h("pre", {class: "text"}, group.question),
    h(
      "dl",
      {},
      fact("gold answer", group.gold),
      fact(
        "majority",
        group.majority === null
          ? "none"
          : `${group.majority} (${group.largest} of ${group.completions.length}), ${right[group.majority_is_right]}`,
      ),
      fact("normalised entropy", number(group.normalised_entropy)),
      group.trained === null
        ? null
        : fact("training", group.refused ? `refused: ${group.refused}` : group.trained ? "trained" : "not trained"),
    ),
    h(
      "ul",
      {class: "tally", "aria-label": "Clusters of answers"},
      [...found.values()].map((one) =>
        h("li", {}, badge(one), " ", h("span", {class: "answer"}, one.answer), ` × ${one.size}`, verdict(one.correct)),
      ),
    ),
    group.prompt &&
      h("details", {}, h("summary", {}, "Prompt as the model read it"), h("pre", {class: "text"}, group.prompt)),
  );
}

function fact(name, value) {
  return [h("dt", {}, name), h("dd", {}, value === null || value === undefined ? "–" : value)];
}

export function badge(cluster) {
  return cluster
    ? h(
        "span",
        {class: `badge c${cluster.place % 8}`, title: `cluster ${cluster.letter}: ${cluster.size} completions`},
        cluster.letter,
      )
    : h("span", {class: "badge none", title: "no answer was found"}, "–");
}

export function verdict(correct) {
  if (correct === null || correct === undefined) return null;
  return h("span", {class: correct > 0.5 ? "right" : "wrong"}, correct > 0.5 ? " ✓ right" : " ✗ wrong");
}

function card(one, cluster, shaded) {
  const [before, answer, behind] = one.parts;
  const numbers = [
    one.reward !== null && ["reward", number(one.reward)],
    ...Object.entries(one.scores || {}).map(([name, value]) => [name, number(value)]),
    one.advantage !== null && ["advantage", number(one.advantage)],
    one.num_tokens !== null && ["tokens", `${one.num_tokens}${one.truncated ? ", cut at the limit" : ""}`],
    one.policy_version !== null && ["policy version", one.policy_version],
  ].filter(Boolean);
  return h(
    "article",
    {class: `card ${cluster ? `c${cluster.place % 8}` : "none"}`, "aria-label": `Completion ${one.index + 1}`},
    h(
      "h3",
      {},
      badge(cluster),
      " ",
      h("span", {class: "answer"}, one.answer === null ? "no answer" : one.answer),
      verdict(one.correct),
      h("small", {}, `completion ${one.index + 1}`),
    ),
    shaded && one.tokens
      ? h(
          "pre",
          {class: "text"},
          one.tokens.map(([text, value]) =>
            h("span", {class: `p${Math.min(5, Math.floor(-value))}`, title: `${number(value)} nats`}, text),
          ),
        )
      : h("pre", {class: "text"}, before, answer && h("mark", {}, answer), behind),
    h(
      "dl",
      {class: "numbers"},
      numbers.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
  );
}

export async function questionView(main, {source, question_id}) {
  const {rows, total} = await ask("groups", {source, question_id, limit: 100});
  const groups = await Promise.all(rows.map((row) => ask("group", {source, id: row.id})));
  replace(
    main,
    h("h2", {tabindex: "-1"}, `Question ${question_id} at ${total} ${total === 1 ? "step" : "steps"}`),
    groups.length > 0 && h("pre", {class: "text"}, groups[0].question),
    groups.length > 0 && h("p", {}, "gold answer: ", groups[0].gold === null ? "–" : groups[0].gold),
    rows.length < total && h("p", {}, `The first ${rows.length} are shown.`),
    h(
      "div",
      {class: "wide"},
      h(
        "table",
        {class: "rows"},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Step", "Reward", "Right", "Entropy", "Training", "Answers"].map((name) => h("th", {scope: "col"}, name)),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map((row, index) =>
            h(
              "tr",
              {},
              h("th", {scope: "row"}, link("group", {source, id: row.id}, row.benchmark || String(row.step))),
              h("td", {}, number(row.reward)),
              h("td", {}, row.num_right === null ? "–" : `${row.num_right}/${row.num}`),
              h("td", {}, percent(row.entropy)),
              h("td", {}, row.refused || (row.trained ? "trained" : "–")),
              h(
                "td",
                {class: "tallies"},
                [...clusters(groups[index].completions).values()].map((one) => [
                  h(
                    "span",
                    {class: `tallied${one.correct > 0.5 ? " right" : ""}`},
                    `${one.answer} ×${one.size}${one.correct > 0.5 ? " ✓" : ""}`,
                  ),
                  " ",
                ]),
              ),
            ),
          ),
        ),
      ),
    ),
  );
  return {};
}
