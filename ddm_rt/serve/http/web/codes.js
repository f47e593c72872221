// What a code is called: by its values of the factors, where somebody named some, and else by its number.

/** What images are counted by: a label, the name in a target, and whether an image belongs to it. */
export function partsOf({ num_top_codes: topCodes, factors }) {
  if (factors.length === 0) {
    return Array.from({ length: topCodes }, (_, top) => ({
      label: `Top code ${top}`,
      name: `code:${top}`,
      has: (image) => image.top_code === top,
    }));
  }
  return factors.flatMap(({ name, values, value_of: valueOf }) =>
    values.map((value, i) => ({
      label: `${name}: ${value}`,
      name: `${name}:${value}`,
      has: ({ code }) => valueOf[code] === i,
    })),
  );
}

/** An image's values, "female, dark", or its top code; "no code" where it has none. */
export function nameOf({ factors }, { code, top_code: top }) {
  if (code < 0) return "no code";
  if (factors.length === 0) return `top code ${top}`;
  return factors.map(({ values, value_of: valueOf }) => values[valueOf[code]]).join(", ");
}
