// Numbers and times as a person reads them.

const whole = new Intl.NumberFormat("en");
const oneDigit = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const twoDigits = new Intl.NumberFormat("en", { maximumFractionDigits: 2, minimumFractionDigits: 2 });
const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

export const count = (number) => whole.format(number);
export const norm = (number) => (number === null ? "not finite" : precise.format(number));

export function tokens(number) {
  return `${count(number)} token${number === 1 ? "" : "s"}`;
}

export function rate(number) {
  if (number === null || number === undefined) return "–";
  if (number === 0) return "0";
  if (number < 1) return twoDigits.format(number);
  return number < 100 ? oneDigit.format(number) : whole.format(Math.round(number));
}

export function percent(part, all) {
  if (!all) return "–";
  // Never "100 %" while something is left.
  const share = part === all ? 100 : Math.min(99.9, (100 * part) / all);
  return `${share === 100 ? "100" : oneDigit.format(share)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "never";
  return seconds < 1.5 ? "just now" : `${seconds < 60 ? `${Math.floor(seconds)} s` : duration(seconds)} ago`;
}

export function clock(seconds, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(1000 * seconds).toLocaleTimeString("en", options);
}

export function bytes(number) {
  if (number >= 1e9) return `${oneDigit.format(number / 1e9)} GB`;
  return `${whole.format(Math.round(number / 1e6))} MB`;
}
