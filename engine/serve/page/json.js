// JSON whose whole numbers keep all their digits: seeds have up to 19, and a JavaScript number holds 15.

/** The value of a text; whole numbers that a number cannot hold become BigInt. */
export function parsed(text) {
  return JSON.parse(text, (_, value, context) => {
    const large = typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "");
    return large ? BigInt(context.source) : value;
  });
}

/** The text of a value. */
export function written(value, indent = 0) {
  return JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? exactly(inner) : inner), indent);
}

function exactly(number) {
  return JSON.rawJSON ? JSON.rawJSON(String(number)) : Number(number);
}
