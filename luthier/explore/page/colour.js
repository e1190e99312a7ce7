// Colours: a fixed palette for kinds, a ramp for numbers (2nd to 98th percentile).
const KINDS = {
  light: ["#3566a8", "#c8641f", "#2f8a4c", "#b43a3f", "#7b55a8", "#8a5a44", "#c0579b", "#6b6f76", "#9a8a13", "#178a98"],
  dark: ["#7fb0f0", "#f2a05c", "#79cf92", "#f08a88", "#bda0ee", "#cfa38b", "#ef9fd0", "#b3b8c0", "#d9cb58", "#6bd0dc"],
};
const RAMP = { light: ["#cfdcec", "#7fb3c8", "#3f8f8d", "#a0611c", "#6b1f10"], dark: ["#31506e", "#3f8aa0", "#7cc49c", "#eebd6a", "#ff8f70"] };
let colourBy = "cluster";
const theme = () => (dark.matches ? "dark" : "light");

function kindColour(index) {
  const list = KINDS[theme()];
  if (index < list.length) return list[index];
  const hue = (index * 137.508 + 20) % 360, light = (dark.matches ? 62 : 40) + 10 * (Math.floor(index / 10) % 2);
  return hslToHex(hue, 48, light);
}
function hslToHex(h, s, l) {
  const a = (s / 100) * Math.min(l / 100, 1 - l / 100);
  const part = (k) => {
    const m = (k + h / 30) % 12;
    return Math.round(255 * (l / 100 - a * Math.max(-1, Math.min(m - 3, 9 - m, 1)))).toString(16).padStart(2, "0");
  };
  return `#${part(0)}${part(8)}${part(4)}`;
}
function rampPixel(share) {
  const list = RAMP[theme()].map((hex) => parseInt(hex.slice(1), 16));
  const at = Math.min(0.9999, Math.max(0, share)) * (list.length - 1), k = Math.floor(at), f = at - k;
  const mix = (shift) => Math.round(((list[k] >> shift) & 255) * (1 - f) + ((list[k + 1] >> shift) & 255) * f);
  return (0xff000000 | (mix(0) << 16) | (mix(8) << 8) | mix(16)) >>> 0;
}
function rangeOf(num) {
  if (!num.range) {
    const values = num.data.filter((value) => !Number.isNaN(value)).sort();
    const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
    num.range = values.length ? [at(0.02), at(0.98)] : [0, 1];
    if (num.range[0] === num.range[1]) num.range = [values[0], values[values.length - 1]];
  }
  return num.range;
}

function recolour() {
  cssCache.clear();
  const missing = cssColour("--rest");
  if (colourBy in catOf) {
    const { data, values } = catOf[colourBy], list = values.map((_, k) => toPixel(kindColour(k)));
    for (let i = 0; i < n; i++) colours[i] = list[data[i]];
  } else if (colourBy === "is outlier") {
    const yes = toPixel(kindColour(3));
    for (let i = 0; i < n; i++) colours[i] = isOutlier(i) ? yes : missing;
  } else if (colourBy === "coverage") {
    const train = toPixel(kindColour(7)), ok = toPixel(kindColour(0)), bad = toPixel(kindColour(3));
    for (let i = 0; i < n; i++) colours[i] = heldOut.has(i) ? (isUncovered(i) ? bad : ok) : isTraining(i) ? train : missing;
  } else {
    const num = numOf[colourBy], [low, high] = rangeOf(num), steps = Array.from({ length: 65 }, (_, k) => rampPixel(k / 64));
    for (let i = 0; i < n; i++) {
      const value = num.data[i];
      colours[i] = Number.isNaN(value) ? missing : steps[Math.round(64 * Math.min(1, Math.max(0, (value - low) / (high - low || 1))))];
    }
  }
  drawLegend();
  queue();
}
function standsOut() {
  if (colourBy === "is outlier") return isOutlier;
  if (colourBy === "coverage" || colourBy === "distance") return (i) => heldOut.has(i);
  if (colourBy in numOf && numOf[colourBy].sparse) return (i) => !Number.isNaN(numOf[colourBy].data[i]);
  return null;
}
const trainName = catOf.split.values.indexOf("train");
const isTraining = (i) => catOf.split.data[i] === trainName;
const colourText = (i) => `#${[0, 8, 16].map((shift) => ((colours[i] >> shift) & 255).toString(16).padStart(2, "0")).join("")}`;

function drawLegend() {
  const legend = byId("legend");
  legend.replaceChildren();
  const key = (colour, text) => {
    const item = make("span", "swatch", text);
    item.style.setProperty("--dot", colour);
    legend.append(item);
  };
  if (colourBy in catOf && colourBy !== "cluster") catOf[colourBy].values.slice(0, 12).forEach((value, k) => key(kindColour(k), value));
  else if (colourBy === "is outlier") { key(kindColour(3), "outlier"); key(cssText("--rest"), "other"); }
  else if (colourBy === "coverage") { key(kindColour(3), "held out, uncovered"); key(kindColour(0), "held out, covered"); key(kindColour(7), "training"); }
  else if (colourBy in numOf) {
    const num = numOf[colourBy], [low, high] = rangeOf(num);
    legend.append(make("span", "", short(low)), make("span", "ramp"), make("span", "", `${short(high)} ${num.unit}`));
    if (num.data.some(Number.isNaN)) key(cssText("--rest"), "not scored");
  }
}
