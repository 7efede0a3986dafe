"""The demo's initial data: agents, conversations, and the texts that customers write next."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["AGENTS", "CONVERSATIONS", "NEWCOMERS", "Contact", "SeedConversation", "SeedMessage", "next_line"]

CUSTOMER = 0


class Contact(NamedTuple):
    """A customer.

    :ivar channel: whatsapp, web, email or instagram.
    :ivar language: of the contact's messages: en or pt.
    """

    name: str
    channel: str
    language: str


class SeedMessage(NamedTuple):
    """A message of the initial data.

    :ivar sender: an agent's id, or `CUSTOMER`.
    :ivar minutes: age of the message when the database is created.
    """

    sender: int
    minutes: int
    content: str


class SeedConversation(NamedTuple):
    """A conversation of the initial data.

    :ivar unread_by: the agents who have not read the last customer messages.
    """

    contact: Contact
    status: str
    assigned_to: int | None
    unread_by: tuple[int, ...]
    messages: tuple[SeedMessage, ...]


#: Agent id => name and team. The page translates the team.
AGENTS = {
    1: ("Ana Souza", "support"),
    2: ("Bruno Lima", "sales"),
    3: ("Carla Mendes", "billing"),
    4: ("Diego Alves", "shipping"),
}

CONVERSATIONS = (
    SeedConversation(
        Contact("Marina Costa", "whatsapp", "pt"), "open", 1, (1,),
        (
            SeedMessage(CUSTOMER, 34, "Oi! Meu pedido 4821 ainda não chegou, a previsão era ontem."),
            SeedMessage(1, 31, "Olá, Marina! Já estou verificando com a transportadora, um minutinho."),
            SeedMessage(CUSTOMER, 30, "Obrigada!"),
            SeedMessage(1, 24, "O pacote saiu do centro de distribuição de Campinas hoje às 7h40. "
                               "A nova previsão é amanhã até o meio-dia."),
            SeedMessage(CUSTOMER, 3, "Amanhã de manhã eu não estou em casa. Dá para deixar na portaria?"),
        ),
    ),
    SeedConversation(
        Contact("James Whitfield", "web", "en"), "open", 2, (2, 4),
        (
            SeedMessage(CUSTOMER, 52, "Hi, I'd like to order forty of the ceramic mugs for our office. "
                                      "Is there a volume price?"),
            SeedMessage(2, 47, "Hello James! There is: 12% off from 30 pieces on. Should they carry your logo?"),
            SeedMessage(CUSTOMER, 11, "Yes please, one colour. How long would that take?"),
        ),
    ),
    SeedConversation(
        Contact("Padaria Pão Quente", "whatsapp", "pt"), "open", None, (1, 2, 3, 4),
        (
            SeedMessage(CUSTOMER, 18, "Bom dia! Precisamos trocar o endereço de entrega da assinatura mensal."),
            SeedMessage(CUSTOMER, 17, "Mudamos a loja para a Rua Augusta, 1508."),
        ),
    ),
    SeedConversation(
        Contact("Emily Carter", "email", "en"), "open", None, (1, 3),
        (
            SeedMessage(CUSTOMER, 75, "I was charged twice for order 4790. Could you look into this?\n\n"
                                      "Both charges are dated Friday."),
        ),
    ),
    SeedConversation(
        Contact("Rafael Nogueira", "web", "pt"), "open", 3, (),
        (
            SeedMessage(CUSTOMER, 190, "Podem reenviar a nota fiscal do pedido 4688? O contador está pedindo."),
            SeedMessage(3, 181, "Claro, Rafael! Acabei de enviar para o seu e-mail, em PDF e XML."),
            SeedMessage(CUSTOMER, 178, "Chegou. E dá para emitir as próximas com o CNPJ da empresa?"),
            SeedMessage(3, 170, "Dá sim: é só me passar o número que eu deixo salvo no cadastro."),
        ),
    ),
    SeedConversation(
        Contact("Sofia Almeida", "instagram", "pt"), "open", 4, (4,),
        (
            SeedMessage(CUSTOMER, 320, "Vocês entregam em Portugal?"),
            SeedMessage(4, 300, "Entregamos! O frete leva de 8 a 12 dias úteis e custa R$ 89."),
            SeedMessage(CUSTOMER, 142, "Perfeito. E os impostos na chegada, já estão incluídos?"),
        ),
    ),
    SeedConversation(
        Contact("Lucas Ferreira", "whatsapp", "pt"), "closed", 1, (),
        (
            SeedMessage(CUSTOMER, 1560, "A alça da mochila veio descosturada."),
            SeedMessage(1, 1540, "Que chato, Lucas, desculpe! Envio uma nova hoje mesmo, sem custo."),
            SeedMessage(CUSTOMER, 1530, "Que atendimento rápido. Valeu!"),
        ),
    ),
    SeedConversation(
        Contact("Olivia Brooks", "email", "en"), "closed", 2, (),
        (
            SeedMessage(CUSTOMER, 2980, "Do the gift cards ever expire?"),
            SeedMessage(2, 2950, "They don't, Olivia. Use them whenever you like."),
            SeedMessage(CUSTOMER, 2941, "Lovely, thank you."),
        ),
    ),
)  # fmt: skip

#: The next messages of each contact in this order, followed by those of `SMALL_TALK`.
FOLLOW_UPS = {
    "Marina Costa": (
        "Pode ser no nome da Dona Célia, ela fica na portaria até as 18h.",
        "Perfeito! Vocês são ótimos, obrigada pela paciência.",
    ),
    "James Whitfield": (
        "Two weeks would be fine. Can you send me a quote by e-mail?",
        "Great. And could ten of them come in blue?",
    ),
    "Padaria Pão Quente": ("O CEP é 01304-001.", "A entrega de quinta já vai para o endereço novo?"),
    "Emily Carter": (
        "If it helps: the last four digits of the card are 4417.",
        "Thank you. How long does the refund take?",
    ),
    "Rafael Nogueira": ("Segue: 12.345.678/0001-95.", "Muito obrigado, ajudou demais."),
    "Sofia Almeida": ("E se eu precisar trocar o tamanho?", "Combinado, vou fechar o pedido hoje."),
    "Lucas Ferreira": ("A mochila nova chegou, ficou perfeita. Obrigado de novo!",),
    "Olivia Brooks": ("One more thing: can I use two gift cards in one order?",),
}

SMALL_TALK = {
    "en": (
        "Could you check that for me, please?",
        "That works for me.",
        "Sorry, one more question: can I change the delivery date?",
        "Thanks for the quick answer!",
        "I'll wait for your confirmation then.",
    ),
    "pt": (
        "Consegue verificar isso para mim, por favor?",
        "Para mim está ótimo.",
        "Desculpe, mais uma dúvida: dá para mudar a data da entrega?",
        "Obrigada pela resposta rápida!",
        "Fico no aguardo então.",
    ),
}

#: New contacts with their first messages, used in this order and repeatedly.
NEWCOMERS = (
    (Contact("Beatriz Rocha", "whatsapp", "pt"), "Oi! A cafeteira italiana de 6 xícaras volta ao estoque quando?"),
    (Contact("Noah Bennett", "web", "en"), "Hello, my discount code WELCOME10 doesn't work at checkout."),
    (Contact("Tiago Martins", "instagram", "pt"), "Boa tarde, vocês têm loja física em Belo Horizonte?"),
    (Contact("Chloe Anderson", "email", "en"), "Can I still add an item to order 4833? It was placed an hour ago."),
    (Contact("Camila Duarte", "web", "pt"), "Recebi o produto na cor errada. Como faço a troca?"),
    (Contact("Oliver Hughes", "whatsapp", "en"), "Is the oak shelf strong enough for about 30 kg of books?"),
)


def next_line(contact: Contact, message_count: int) -> str:
    """Return the next message of a contact that has written `message_count` messages."""
    initial_count = 1
    for conversation in CONVERSATIONS:
        if conversation.contact == contact:
            initial_count = sum(message.sender == CUSTOMER for message in conversation.messages)
    lines = FOLLOW_UPS.get(contact.name, ())
    turn = max(0, message_count - initial_count)
    if turn < len(lines):
        return lines[turn]
    talk = SMALL_TALK[contact.language]
    return talk[(turn - len(lines)) % len(talk)]
