// Curves over steps (uPlot) and histograms (SVG).

import {h, number, svg} from "./dom.js";

export const COLOURS = ["--run-0", "--run-1", "--run-2", "--run-3", "--run-4", "--run-5"];
const HEIGHT = 190;

// A custom property of style.css as a canvas reads it, in the present theme.
export function colour(name, opacity = 1) {
  const probe = h("span", {style: {color: `var(${name})`}});
  document.body.append(probe);
  const found = getComputedStyle(probe).color.replace("rgb(", "rgba(").replace(")", `, ${opacity})`);
  probe.remove();
  return found;
}

// Mean over a centred window of 2 * reach + 1 values; gaps stay gaps.
export function smoothed(values, reach) {
  if (!reach) return values;
  return values.map((value, index) => {
    if (value === null) return null;
    const window = values.slice(Math.max(0, index - reach), index + reach + 1).filter((one) => one !== null);
    return window.reduce((sum, one) => sum + one, 0) / window.length;
  });
}

// One metric of several runs. series: [{name, colour, steps, values, low, high}]; options: {log, reach, range: [first,
// last], onrange}. Returns {element, draw(), setRange(range), destroy()}: draw once the element is in the page.
export function chart(title, series, options) {
  const readout = h("div", {class: "readout", "aria-hidden": "true"});
  const box = h("div", {class: "plot"});
  let plot = null;
  const lines = series.map((one) => ({...one, drawn: smoothed(one.values, one.isEvaluation ? 0 : options.reach)}));

  function show(step) {
    readout.replaceChildren(
      ...lines.map((line) => {
        const index = step === null ? line.steps.length - 1 : nearest(line.steps, step);
        const band =
          line.low && line.low[index] !== null ? ` [${number(line.low[index])}, ${number(line.high[index])}]` : "";
        return h(
          "span",
          {},
          h("i", {class: "swatch", style: {background: `var(${line.colour})`}}),
          series.length > 1 ? `${line.name} ` : "",
          h("b", {}, number(line.values[index])),
          band,
          ` at step ${line.steps[index] ?? "–"}`,
        );
      }),
    );
  }

  function draw() {
    const {data, parts, bands} = layers(lines, options);
    const axis = {
      stroke: colour("--faint"),
      grid: {stroke: colour("--line"), width: 1},
      ticks: {stroke: colour("--line"), width: 1},
      font: "11px system-ui",
    };
    plot = new uPlot(
      {
        width: Math.max(box.clientWidth, 120),
        height: HEIGHT,
        legend: {show: false},
        series: [{}, ...parts],
        bands,
        scales: {x: {time: false, range: () => options.range}, y: options.log ? {distr: 3} : {range: spread}},
        axes: [
          {...axis, size: 28},
          {...axis, size: 52, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick)))},
        ],
        cursor: {
          points: {size: 6},
          drag: {x: true, y: false, setScale: false},
          bind: {dblclick: () => () => options.onrange(null)},
          sync: {
            key: "steps",
            setSeries: false,
            filters: {pub: (type) => type === "mousemove" || type === "mouseleave"},
          },
        },
        hooks: {
          setCursor: [(u) => show(u.cursor.left < 0 ? null : u.posToVal(u.cursor.left, "x"))],
          setSelect: [
            (u) => {
              if (u.select.width < 4) return;
              options.onrange([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
              u.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
            },
          ],
        },
      },
      data,
      box,
    );
    show(null);
  }

  const resize = new ResizeObserver(
    () => plot && plot.setSize({width: Math.max(box.clientWidth, 120), height: HEIGHT}),
  );
  resize.observe(box);
  return {
    element: h("div", {role: "img", "aria-label": spoken(title, series)}, box, readout),
    draw,
    setRange(range) {
      options.range = range;
      if (plot) plot.setScale("x", {min: range[0], max: range[1]});
    },
    destroy() {
      resize.disconnect();
      if (plot) plot.destroy();
    },
  };
}

function layers(lines, options) {
  const positive = (values) => (options.log ? values.map((one) => (one > 0 ? one : null)) : values);
  const parts = [],
    bands = [];
  const tables = lines.map((line) => {
    const stroke = colour(line.colour),
      table = [line.steps];
    const add = (values, part) => {
      table.push(positive(values));
      parts.push({spanGaps: true, stroke, points: {show: false}, ...part});
    };
    if (line.low) {
      bands.push({series: [parts.length + 2, parts.length + 1], fill: colour(line.colour, 0.15)});
      add(line.low, {width: 0});
      add(line.high, {width: 0});
    }
    if (line.drawn !== line.values) add(line.values, {stroke: colour(line.colour, 0.25), width: 1});
    add(line.drawn, {width: 2, points: {show: line.isEvaluation || line.steps.length < 3, size: 6, fill: stroke}});
    return table;
  });
  return {data: uPlot.join(tables), parts, bands};
}

// The ends of the y axis: some room around the values; of values that are all equal, as much as they are large.
function spread(plot, least, most) {
  if (least === null || (least === 0 && most === 0)) return [0, 1];
  return uPlot.rangeNum(least, most === least ? least + Math.abs(least) / 10 : most, 0.1, true);
}

function nearest(steps, wanted) {
  let best = 0;
  for (let index = 1; index < steps.length; index++) {
    if (Math.abs(steps[index] - wanted) < Math.abs(steps[best] - wanted)) best = index;
  }
  return best;
}

function spoken(title, series) {
  return (
    `${title}. ` +
    series
      .map(
        ({name, steps, values}) =>
          `${name}: ${number(values[0])} at step ${steps[0]}, ${number(values.at(-1))} at step ${steps.at(-1)}`,
      )
      .join("; ")
  );
}

// Shares per bin, as bars, and others as an outline over them. parts: [{name, counts}], one or two.
export function histogram(title, unit, edges, parts) {
  const width = 560,
    height = 220,
    left = 44,
    bottom = 34,
    top = 8;
  const shares = parts.map(({counts}) => {
    const total = counts.reduce((sum, one) => sum + one, 0);
    return counts.map((one) => (total ? one / total : 0));
  });
  const most = Math.max(0.01, ...shares.flat());
  const x = (value) => left + ((width - left - 8) * (value - edges[0])) / (edges.at(-1) - edges[0]);
  const y = (share) => top + (height - top - bottom) * (1 - share / most);
  const bars = shares[0].map((share, bin) =>
    svg(
      "rect",
      {
        class: "bar",
        x: x(edges[bin]) + 0.5,
        y: y(share),
        width: Math.max(0.5, x(edges[bin + 1]) - x(edges[bin]) - 1),
        height: height - bottom - y(share),
      },
      svg("title", {}, `${number(edges[bin])} to ${number(edges[bin + 1])}: ${(100 * share).toFixed(1)}%`),
    ),
  );
  const outline =
    shares[1] &&
    svg("path", {
      class: "outline",
      d: shares[1]
        .map((share, bin) => `${bin ? "L" : "M"}${x(edges[bin])},${y(share)}L${x(edges[bin + 1])},${y(share)}`)
        .join(""),
    });
  const isWhole = edges[0] % 1 !== 0 && (edges[1] - edges[0]) % 1 === 0; // bins of whole numbers: the first of each
  const every = Math.ceil((edges.length - 1) / 6);
  const ticks = isWhole
    ? edges
        .slice(0, -1)
        .filter((_, bin) => bin % every === 0)
        .map((edge) => edge + 0.5)
    : [0, 0.25, 0.5, 0.75, 1].map((part) => edges[0] + part * (edges.at(-1) - edges[0]));
  return svg(
    "svg",
    {viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img", "aria-label": title},
    [0, 0.5, 1].map((part) => [
      svg("line", {class: "grid", x1: left, x2: width - 8, y1: y(part * most), y2: y(part * most)}),
      svg("text", {x: left - 6, y: y(part * most) + 4, "text-anchor": "end"}, `${(100 * part * most).toFixed(0)}%`),
    ]),
    bars,
    outline,
    ticks.map((tick) =>
      svg("text", {x: x(tick), y: height - 18, "text-anchor": "middle"}, number(Number(tick.toPrecision(3)))),
    ),
    svg("text", {x: (left + width) / 2, y: height - 3, "text-anchor": "middle"}, unit),
  );
}
