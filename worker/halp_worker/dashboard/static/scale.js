// Scales of charts.

/** A round number that is at least `most`. */
export function nice(most) {
  if (most <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(most));
  return [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((one) => one * unit).find((one) => one >= most);
}

/** Of a rule of a chart: three digits say enough. */
export function trim(value) {
  return String(Number(value.toPrecision(3)));
}
