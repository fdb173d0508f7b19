// The frame: views, sources, theme, and following what runs.

import {address, h, replace} from "./dom.js";
import {ask, exported} from "./data.js";
import {COLOURS} from "./charts.js";
import {groupView, questionView} from "./group.js";
import {curvesView} from "./curves.js";
import {disagreementsView, rolloutsView, stepsView} from "./lists.js";
import {configurationView, glossaryView, histogramsView, resultsView} from "./views.js";

const VIEWS = {
  curves: ["Curves", curvesView],
  steps: ["Steps", stepsView],
  rollouts: ["Rollouts", rolloutsView],
  disagreements: ["Disagreements", disagreementsView],
  histograms: ["Histograms", histogramsView],
  configuration: ["Configuration", configurationView],
  results: ["Results", resultsView],
  glossary: ["Glossary", glossaryView],
  group: [null, groupView],
  question: [null, questionView],
};
const NEEDS = {
  curves: "curves",
  steps: "curves",
  rollouts: "has_groups",
  disagreements: "has_groups",
  histograms: "has_groups",
};
const THEMES = {auto: "as the system", light: "light", dark: "dark"};
const POLL_MS = 2000;
const main = document.getElementById("main"),
  message = document.getElementById("status");
const state = {
  sources: [],
  drawn: new Set(),
  colourOf: (name) => COLOURS[state.sources.findIndex((one) => one.name === name) % COLOURS.length],
};
let shown = {},
  source = null,
  era = 0,
  isMissed = false; // isMissed: there was something new while the view was made

function route() {
  const [view, query] = location.hash.slice(1).split("?");
  const parameters = Object.fromEntries(new URLSearchParams(query || ""));
  if (state.sources.some((one) => one.name === parameters.source)) source = parameters.source;
  const kind = state.sources.find((one) => one.name === source)?.kind;
  return {
    view: VIEWS[view] ? view : kind === "evaluation" || kind === "pipeline" ? "results" : "curves",
    parameters: {...parameters, source},
  };
}

async function show(isChosen) {
  const {view, parameters} = route(),
    mine = (era += 1);
  if (shown.destroy) shown.destroy();
  shown = {};
  isMissed = false;
  frame(view);
  const place = h("div", {class: `view ${view}`});
  replace(main, place);
  try {
    const made = await VIEWS[view][1](place, parameters, state);
    if (mine !== era) return made.destroy && made.destroy();
    shown = made;
    if (isMissed) await refreshShown();
    message.textContent = "";
  } catch (error) {
    if (mine !== era) return;
    replace(place, h("p", {class: "note", role: "alert"}, error.message));
  }
  document.title = `${VIEWS[view][0] || view}: ${source}`;
  if (isChosen) main.querySelector("h2")?.focus({preventScroll: true});
}

async function refreshShown() {
  if (shown.refresh) await shown.refresh();
  else isMissed = true;
}

function frame(view) {
  const current = state.sources.find((one) => one.name === source);
  replace(
    document.getElementById("views"),
    h(
      "ul",
      {},
      Object.entries(VIEWS)
        .filter(([, [title]]) => title)
        .map(([name, [title]]) => {
          const isEmpty = current && NEEDS[name] && !current[NEEDS[name]];
          return h(
            "li",
            {},
            h(
              "a",
              {
                href: address(name, name === "glossary" ? {} : {source}),
                "aria-current": name === view ? "page" : null,
                class: isEmpty ? "empty" : null,
              },
              title,
            ),
          );
        }),
    ),
  );
  replace(
    document.getElementById("sources"),
    h("h2", {}, "Runs"),
    h(
      "ul",
      {},
      state.sources.map((one) => {
        const box =
          one.curves &&
          h("input", {
            type: "checkbox",
            "aria-label": `draw the curves of ${one.name}`,
            checked: state.drawn.has(one.name),
            onchange: () => {
              if (box.checked) state.drawn.add(one.name);
              else state.drawn.delete(one.name);
              if (route().view === "curves") refreshShown();
            },
          });
        const of = view === "group" || view === "question" ? "rollouts" : view;
        return h(
          "li",
          {class: one.parent ? "part" : null},
          box || h("span", {class: "nobox"}),
          one.curves ? h("i", {class: "swatch", style: {background: `var(${state.colourOf(one.name)})`}}) : null,
          h(
            "a",
            {
              href: address(NEEDS[of] && !one[NEEDS[of]] ? "results" : of, {source: one.name}),
              "aria-current": one.name === source ? "true" : null,
              title: one.path,
            },
            one.parent ? one.name.slice(one.parent.length + 1) : one.name,
          ),
          h("small", {}, ` ${one.kind}, ${one.status}`),
        );
      }),
    ),
    exported &&
      h(
        "p",
        {class: "note"},
        `As it was when this file was written; of each run at most ${exported.sample} groups of completions.`,
      ),
  );
}

async function poll() {
  try {
    const before = new Map(state.sources.map((one) => [one.name, one]));
    state.sources = await ask("overview");
    const news = state.sources.filter((one) => JSON.stringify(one) !== JSON.stringify(before.get(one.name)));
    if (news.length) {
      frame(route().view);
      const isOfInterest = news.some(
        (one) => one.name === source || (route().view === "curves" && state.drawn.has(one.name)),
      );
      if (isOfInterest) await refreshShown();
    }
    message.textContent = "";
  } catch (error) {
    message.textContent = `No answer from the command that serves this page: ${error.message}. Is it still running?`;
  }
  setTimeout(poll, POLL_MS);
}

function theme(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  try {
    localStorage.setItem("theme", chosen);
  } catch {
    /* a file that may not store */
  }
  const names = Object.keys(THEMES),
    button = document.getElementById("theme");
  replace(button, `Colours: ${THEMES[chosen]}`);
  button.onclick = () => {
    theme(names[(names.indexOf(chosen) + 1) % names.length]);
    show(false);
  };
}

function storedTheme() {
  try {
    return THEMES[localStorage.getItem("theme")] ? localStorage.getItem("theme") : "auto";
  } catch {
    return "auto";
  }
}

async function start() {
  theme(storedTheme());
  state.sources = await ask("overview");
  source = state.sources[0]?.name ?? null;
  for (const one of state.sources.filter((other) => other.curves).slice(0, COLOURS.length)) state.drawn.add(one.name);
  await show(false);
  document.getElementById("skip").onclick = () => main.focus();
  addEventListener("hashchange", () => show(true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(false));
  if (!exported) setTimeout(poll, POLL_MS);
}

start();
