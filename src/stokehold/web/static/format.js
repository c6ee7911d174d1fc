// Numbers and times as people read them. Unknown (null) is a dash, never a zero.

export const DASH = "–";

export function number(value, digits = 0) {
  if (value === null || value === undefined) return DASH;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Three significant digits, for losses that span decades. */
export function significant(value) {
  if (value === null || value === undefined) return DASH;
  if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5)) return value.toExponential(2);
  return value.toPrecision(value >= 100 ? 4 : 3);
}

/** Only all of it is 100 %, only none of it is 0 %. */
export function percent(share, digits = 1) {
  if (share === null || share === undefined) return DASH;
  const text = number(100 * share, digits);
  const least = 10 ** -digits;
  if (share > 0 && text === number(0, digits)) return `<${number(least, digits)} %`;
  return share < 1 && text === number(100, digits) ? `${number(100 - least, digits)} %` : `${text} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.round((seconds % 3600) / 60)} min` : `${Math.round(hours / 24)} days`;
}

/** The hour today, else the day and the hour, in the viewer's own time. */
export function clock(stamp) {
  const then = new Date(stamp);
  const time = then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  if (then.toDateString() === new Date().toDateString()) return time;
  return `${then.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time.slice(0, 5)}`;
}
