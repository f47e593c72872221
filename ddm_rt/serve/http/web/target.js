// What a target says: "uniform", or shares by name, as in "code:0=.3,code:1=.7" or "hair:dark=.5,hair:fair=.5".

/** The share of each name: "code:0", "hair:dark" or a group. null, where the images have no codes, names none. */
export function wantedShares(target, { num_top_codes: topCodes, factors }) {
  const even = Array.from({ length: topCodes }, (_, top) => [`code:${top}`, 1 / topCodes]);
  const own = factors.map(({ name, values, shares }) => values.map((value, i) => [`${name}:${value}`, shares[i]]));
  if (target === "uniform") return new Map([...even, ...own.flat()]);
  const wanted = named(target);
  const over = factors.map((factor) => wanted.some(([name]) => name.startsWith(`${factor.name}:`)));
  if (!over.includes(true)) return new Map(wanted);
  // A factor that isn't named keeps its shares, and a value that isn't has none.
  const kept = own.map((pairs, i) => (over[i] ? pairs.map(([name]) => [name, 0]) : pairs));
  return new Map([...kept.flat(), ...wanted]);
}

/** Whether two targets are one, however they are written. */
export function sameTarget(one, other) {
  if (one === "uniform" || other === "uniform") return one === other;
  return JSON.stringify(named(one)) === JSON.stringify(named(other));
}

/** Pairs of a name and its share, in the order of the names; what has none of it is left out. */
function named(target) {
  const pairs = (target ?? "").split(",").map((part) => part.split("=").map((piece) => piece.trim()));
  return pairs
    .map(([name, share]) => [name.replace(/\s*:\s*/, ":"), Number(share)])
    .filter(([, share]) => share > 0)
    .sort(([one], [other]) => (one < other ? -1 : 1));
}
