// The HTTP API of the shop's backend.

/** The backend rejected a request, or is not reachable (`status` 0). */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function call(method, path, body) {
  const options = { method, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  let result;
  try {
    response = await fetch(`/api/${path}`, options);
    result = await response.json();
  } catch {
    throw new ApiError(0, "unreachable", "");
  }
  if (!response.ok) {
    const { code = "error", message = response.statusText } = (result && result.error) || {};
    throw new ApiError(response.status, code, message);
  }
  return result;
}

const conversation = (id, action) => `conversations/${encodeURIComponent(id)}/${action}`;

export const api = {
  agents: () => call("GET", "agents"),
  conversations: (agentId) => call("GET", `conversations?agent_id=${encodeURIComponent(agentId)}`),
  messages: (id) => call("GET", conversation(id, "messages")),
  send: (id, message) => call("POST", conversation(id, "messages"), message),
  assign: (id, agentId, by) => call("POST", conversation(id, "assign"), { agent_id: agentId, by }),
  close: (id, by) => call("POST", conversation(id, "close"), { by }),
  reopen: (id, by) => call("POST", conversation(id, "reopen"), { by }),
  read: (id, agentId) => call("POST", conversation(id, "read"), { agent_id: agentId }),
  customer: (options) => call("POST", "customer", options),
};
