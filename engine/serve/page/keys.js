// Keys that were typed in, kept by this tab until it is closed and told to this server alone.

const held = (name) => ({
  get: () => sessionStorage.getItem(name),
  set: (value) => sessionStorage.setItem(name, value),
  clear: () => sessionStorage.removeItem(name),
});

export const drawingKey = held("twig-key");
export const auditingKey = held("twig-audit-key");
