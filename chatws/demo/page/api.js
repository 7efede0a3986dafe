// The shop's backend, asked by HTTP.

/** What the backend refused, or that it could not be reached (`status` 0). */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function ask(method, path, body) {
  const options = { method, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  let answer;
  try {
    response = await fetch(`/api/${path}`, options);
    answer = await response.json();
  } catch {
    throw new ApiError(0, "unreachable", "");
  }
  if (!response.ok) {
    const { code = "error", message = response.statusText } = (answer && answer.error) || {};
    throw new ApiError(response.status, code, message);
  }
  return answer;
}

const conversation = (id, what) => `conversations/${encodeURIComponent(id)}/${what}`;

export const api = {
  agents: () => ask("GET", "agents"),
  conversations: (agentId) => ask("GET", `conversations?agent_id=${encodeURIComponent(agentId)}`),
  messages: (id) => ask("GET", conversation(id, "messages")),
  send: (id, message) => ask("POST", conversation(id, "messages"), message),
  assign: (id, agentId, by) => ask("POST", conversation(id, "assign"), { agent_id: agentId, by }),
  close: (id, by) => ask("POST", conversation(id, "close"), { by }),
  reopen: (id, by) => ask("POST", conversation(id, "reopen"), { by }),
  read: (id, agentId) => ask("POST", conversation(id, "read"), { agent_id: agentId }),
  customer: (wish) => ask("POST", "customer", wish),
};
