// Where the data come from: the server, or the file that the page was exported into.

const embedded = document.getElementById("data");
export const exported = embedded ? JSON.parse(embedded.textContent) : null;

// Throws an Error with the server's message.
export async function ask(name, parameters = {}) {
  if (exported) return answerHere(name, parameters);
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const response = await fetch(`api/${name}?${new URLSearchParams(given)}`);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function answerHere(name, parameters) {
  if (name === "overview" || name === "glossary") return exported[name];
  if (name === "groups") return groupsHere(exported.groups[parameters.source], parameters);
  if (name === "group") {
    const group = exported.groups[parameters.source].full[parameters.id];
    if (!group) throw new Error("this group is not among those in the file");
    return group;
  }
  return exported[name][parameters.source];
}

const RIGHT = {
  all: (row) => row.num_right === row.num,
  some: (row) => row.num_right !== null && row.num_right > 0 && row.num_right < row.num,
  none: (row) => row.num_right === 0,
  majority_wrong: (row) => row.majority_is_right === 0,
  unknown: (row) => row.num_right === null,
};
const SORTS = {
  step: (row) => row.step,
  reward: (row) => row.reward,
  entropy: (row) => row.entropy,
  tokens: (row) => row.tokens,
  right: (row) => (row.num_right === null ? null : row.num_right / row.num),
  majority: (row) => row.majority_share,
  spread: (row) => (row.reward_max === null ? null : row.reward_max - row.reward_min),
};

// What view/index.py does with SQL.
function groupsHere({rows, full}, given) {
  const is = (name, holds) =>
    given[name] === undefined || given[name] === null || given[name] === "" || holds(given[name]);
  const needle = (given.text || "").toLowerCase();
  const found = rows.filter(
    (row) =>
      is("first_step", (step) => row.step >= Number(step)) &&
      is("last_step", (step) => row.step <= Number(step)) &&
      is("reward_min", (least) => row.reward !== null && row.reward >= Number(least)) &&
      is("reward_max", (most) => row.reward !== null && row.reward <= Number(most)) &&
      is("question_id", (id) => row.question_id === id) &&
      is("right", (name) => RIGHT[name](row)) &&
      is("refused", (why) =>
        why === "any" ? row.refused !== null : why === "no" ? row.refused === null : row.refused === why,
      ) &&
      (!needle ||
        [full[row.id].question, ...full[row.id].completions.map((one) => one.parts.join(""))].some((text) =>
          text.toLowerCase().includes(needle),
        )),
  );
  const value = SORTS[given.sort || "step"],
    way = given.descending ? -1 : 1;
  found.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return way * (x - y || a.id - b.id);
  });
  const offset = Number(given.offset || 0);
  return {total: found.length, more: false, rows: found.slice(offset, offset + Number(given.limit || 100))};
}
