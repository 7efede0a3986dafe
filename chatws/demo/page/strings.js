// All texts of the page in both languages. t() replaces `{name}` by a value.

const STRINGS = {
  en: {
    other_language: "Português",
    login_title: "Everyone in the inbox sees the same thing.",
    login_story: "A customer-service inbox for a small shop. Messages, assignments, typing and presence reach every agent's window at once, over a WebSocket.",
    login_step_1: "Log in as one agent here and as another in a second window.",
    login_step_2: "Write in one window and watch the other.",
    login_step_3: "Let a customer write in. Stop the server and start it again: the windows reconnect by themselves.",
    login_who: "Who are you?",
    login_hint: "No password: this is a demo on your own machine.",
    login_problem: "The server is not reachable. Trying again…",
    side_by_side: "Open two agents side by side",
    team_support: "Support", team_sales: "Sales", team_billing: "Billing", team_shipping: "Shipping",
    connecting: "Connecting…", live: "Live", reconnecting: "Reconnecting…", offline: "Not connected",
    back_nothing: "Back: nothing missed",
    back_messages_one: "Back: 1 missed message recovered", back_messages: "Back: {count} missed messages recovered",
    back_updates_one: "Back: 1 missed update recovered", back_updates: "Back: {count} missed updates recovered",
    back_reloaded: "Back: inbox reloaded",
    connect_again: "Connect again",
    no_client: "The WebSocket client library did not load",
    team: "Team", you: "you", status_online: "online", status_offline: "offline", status_away: "away", status_busy: "busy", my_status: "Your status",
    open_as: "Open another window as", switch_agent: "Leave",
    conversations: "Conversations", filter: "Show", search: "Search by name or text",
    filter_open: "Open", filter_mine: "Mine", filter_closed: "Closed",
    empty_open: "No open conversations. Well done!", empty_mine: "No conversations are assigned to you.", empty_closed: "No closed conversations yet.",
    empty_search: "No results for “{text}”.",
    customer_writes: "A customer writes in", customer_here: "Let {name} write",
    choose_conversation: "Choose a conversation",
    back: "Back to the list", details: "Details", messages: "Messages",
    assignee: "Assigned to", nobody: "Nobody", assign_to_me: "{name} (me)",
    close: "Close", reopen: "Reopen", closed: "Closed", opened: "Open",
    is_closed: "This conversation is closed.",
    your_message: "Your message", send: "Send", draft_placeholder: "Write to {name}…",
    draft_hint: "Enter sends, Shift + Enter starts a new line",
    typing_one: "{name} is typing…", typing_two: "{name} and {other} are typing…", typing_many: "Several people are typing…",
    seen_by: "Seen by {names}", sending: "Sending…", waiting: "Waiting for the connection…", failed: "Not sent",
    retry: "Try again", discard: "Discard",
    note_assigned: "{by} assigned this to {name}", note_assigned_self: "{by} took this conversation", note_assigned_plain: "Assigned to {name}",
    note_unassigned: "{by} removed the assignment", note_unassigned_plain: "The assignment was removed",
    note_closed: "{by} closed the conversation", note_closed_plain: "The conversation was closed",
    note_reopened: "{by} reopened the conversation", note_reopened_plain: "The conversation was reopened",
    you_said: "You: {text}", sender_said: "{name}: {text}", unknown_sender: "Someone",
    unread_one: "1 unread message", unread: "{count} unread messages",
    today: "Today", yesterday: "Yesterday",
    channel: "Channel", number: "Number", first_contact: "First contact", status: "Status",
    channel_whatsapp: "WhatsApp", channel_web: "Website chat", channel_email: "E-mail", channel_instagram: "Instagram",
    toast_new: "{name} started a conversation", toast_assigned: "{by} assigned {name} to you", toast_assigned_plain: "{name} was assigned to you",
    toast_failed: "The action failed: {reason}", show: "Show", dismiss: "Dismiss", no_connection: "no connection to the server",
    not_stored: "The shop's database does not contain this conversation. Pushed messages are shown anyway.",
    details_foot: "New messages arrive through chatws, without reloading or polling.",
  },
  pt: {
    other_language: "English",
    login_title: "Na caixa de entrada, todos veem a mesma coisa.",
    login_story: "A caixa de entrada do atendimento de uma pequena loja. Mensagens, transferências, quem digita e quem está online chegam na hora à janela de cada atendente, por WebSocket.",
    login_step_1: "Entre aqui como um atendente e, em outra janela, como outro.",
    login_step_2: "Escreva em uma janela e olhe para a outra.",
    login_step_3: "Deixe um cliente escrever. Pare o servidor e inicie de novo: as janelas voltam sozinhas.",
    login_who: "Quem é você?",
    login_hint: "Sem senha: esta é uma demonstração na sua própria máquina.",
    login_problem: "O servidor não responde. Tentando de novo…",
    side_by_side: "Abrir dois atendentes lado a lado",
    team_support: "Suporte", team_sales: "Vendas", team_billing: "Financeiro", team_shipping: "Entregas",
    connecting: "Conectando…", live: "Ao vivo", reconnecting: "Reconectando…", offline: "Sem conexão",
    back_nothing: "De volta: nada se perdeu",
    back_messages_one: "De volta: 1 mensagem recuperada", back_messages: "De volta: {count} mensagens recuperadas",
    back_updates_one: "De volta: 1 atualização recuperada", back_updates: "De volta: {count} atualizações recuperadas",
    back_reloaded: "De volta: caixa recarregada",
    connect_again: "Conectar de novo",
    no_client: "Falta o script do cliente WebSocket",
    team: "Equipe", you: "você", status_online: "online", status_offline: "offline", status_away: "ausente", status_busy: "ocupado", my_status: "Seu status",
    open_as: "Abrir outra janela como", switch_agent: "Sair",
    conversations: "Conversas", filter: "Mostrar", search: "Buscar por nome ou texto",
    filter_open: "Abertas", filter_mine: "Minhas", filter_closed: "Fechadas",
    empty_open: "Nada em aberto. Bom trabalho!", empty_mine: "Nada atribuído a você.", empty_closed: "Nada fechado ainda.",
    empty_search: "Nada encontrado para “{text}”.",
    customer_writes: "Um cliente escreve", customer_here: "Deixar {name} escrever",
    choose_conversation: "Escolha uma conversa",
    back: "Voltar à lista", details: "Detalhes", messages: "Mensagens",
    assignee: "Atribuída a", nobody: "Ninguém", assign_to_me: "{name} (eu)",
    close: "Fechar", reopen: "Reabrir", closed: "Fechada", opened: "Aberta",
    is_closed: "Esta conversa está fechada.",
    your_message: "Sua mensagem", send: "Enviar", draft_placeholder: "Escreva para {name}…",
    draft_hint: "Enter envia, Shift + Enter quebra a linha",
    typing_one: "{name} está digitando…", typing_two: "{name} e {other} estão digitando…", typing_many: "Várias pessoas estão digitando…",
    seen_by: "Visto por {names}", sending: "Enviando…", waiting: "Esperando a conexão…", failed: "Não enviada",
    retry: "Tentar de novo", discard: "Descartar",
    note_assigned: "{by} atribuiu a {name}", note_assigned_self: "{by} assumiu a conversa", note_assigned_plain: "Atribuída a {name}",
    note_unassigned: "{by} retirou a atribuição", note_unassigned_plain: "Atribuída a ninguém",
    note_closed: "{by} fechou a conversa", note_closed_plain: "A conversa foi fechada",
    note_reopened: "{by} reabriu a conversa", note_reopened_plain: "A conversa foi reaberta",
    you_said: "Você: {text}", sender_said: "{name}: {text}", unknown_sender: "Alguém",
    unread_one: "1 mensagem não lida", unread: "{count} mensagens não lidas",
    today: "Hoje", yesterday: "Ontem",
    channel: "Canal", number: "Número", first_contact: "Primeiro contato", status: "Situação",
    channel_whatsapp: "WhatsApp", channel_web: "Chat do site", channel_email: "E-mail", channel_instagram: "Instagram",
    toast_new: "{name} iniciou uma conversa", toast_assigned: "{by} atribuiu {name} a você", toast_assigned_plain: "{name} foi atribuída a você",
    toast_failed: "Não deu certo: {reason}", show: "Mostrar", dismiss: "Dispensar", no_connection: "sem conexão com o servidor",
    not_stored: "O banco de dados da loja não conhece esta conversa. O que for enviado a ela aparece mesmo assim.",
    details_foot: "As novidades chegam pelo chatws: sem recarregar, sem polling.",
  },
};

let current = "en";

/** Return the chosen language ("en" or "pt"), or that of the browser. */
export function preferredLanguage(chosen, browser) {
  if (chosen in STRINGS) return chosen;
  return String(browser || "").toLowerCase().startsWith("pt") ? "pt" : "en";
}

export function setLanguage(language) {
  current = language in STRINGS ? language : "en";
}

export function language() {
  return current;
}

/** Return the text `key` in the current language, or the key itself if it is unknown. */
export function t(key, values = {}) {
  const text = STRINGS[current][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Like `t`, with `key_one` for a count of one. */
export function tn(key, count) {
  return t(count === 1 ? `${key}_one` : key, { count });
}

/** Return the keys of each language, for the test that compares them. */
export function keysByLanguage() {
  return Object.fromEntries(Object.entries(STRINGS).map(([name, table]) => [name, Object.keys(table).sort()]));
}

const locale = () => (current === "pt" ? "pt-BR" : "en-GB");

export function clockTime(when) {
  return new Intl.DateTimeFormat(locale(), { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(when);
}

const dayStart = (when) => new Date(when.getFullYear(), when.getMonth(), when.getDate()).getTime();

/** Return "Today", "Yesterday", or the date. */
export function dayName(when, now = new Date()) {
  const days = Math.round((dayStart(now) - dayStart(when)) / 86400000);
  if (days === 0) return t("today");
  if (days === 1) return t("yesterday");
  return new Intl.DateTimeFormat(locale(), { day: "numeric", month: "short" }).format(when);
}

/** Return the time if it is today, otherwise the day. */
export function shortTime(when, now = new Date()) {
  return dayStart(when) === dayStart(now) ? clockTime(when) : dayName(when, now);
}
