// What a target says: "uniform", or shares by name, as in "code:0=.3,code:1=.7".

/** The share of each name, "code:0" or a group. null, where the images have no codes, names none. */
export function wantedShares(target, topCodes) {
  if (target === "uniform") {
    return new Map(Array.from({ length: topCodes }, (_, top) => [`code:${top}`, 1 / topCodes]));
  }
  return new Map(named(target));
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
    .map(([name, share]) => [name, Number(share)])
    .filter(([, share]) => share > 0)
    .sort(([one], [other]) => (one < other ? -1 : 1));
}
