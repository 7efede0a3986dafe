<?php

declare(strict_types=1);

namespace Chatws\Laravel;

use Chatws\Client;
use Illuminate\Auth\Access\AuthorizationException;
use Illuminate\Broadcasting\Broadcasters\Broadcaster;
use Illuminate\Database\Eloquent\ModelNotFoundException;
use Symfony\Component\HttpKernel\Exception\AccessDeniedHttpException;
use Symfony\Component\HttpKernel\Exception\HttpExceptionInterface;

/**
 * A Laravel broadcast connection with the driver `chatws`. README.md explains how to register it.
 *
 * It never throws a BroadcastException. Chatws\Client logs and spools undelivered events, so a queue that retries the
 * job would deliver them twice.
 */
final class ChatwsBroadcaster extends Broadcaster
{
    public function __construct(private readonly Client $client)
    {
    }

    /**
     * Answers `POST /broadcasting/auth` with a token that names the conversations that the application allows.
     *
     * The request names one channel or a list of channels in `channel_name`. The callback of each channel
     * (Broadcast::channel) decides. A request without channels gets a token without conversations. If the application
     * has no callback for conversations, such a token has no claim `conversations`, and the rules of the chatws server
     * apply.
     *
     * @param \Illuminate\Http\Request $request
     * @return array{token: string}
     * @throws AccessDeniedHttpException no user is logged in, no channel is allowed, or no secret is configured (which
     *     is logged)
     */
    public function auth($request)
    {
        $names = self::channelNames($request);
        $user = $names === null ? $request->user() : null;
        $conversations = $names === null && !$this->hasConversationCallback() ? null : [];
        foreach ($names ?? [] as $name) {
            $id = Channels::audience($name)['conversation_id'] ?? null;
            $channelUser = $this->retrieveUser($request, $name); // the channel may have the option `guards`
            if (
                $channelUser === null
                || ($user !== null && !self::isSame($user, $channelUser))
                || ($id !== null && !self::isId($id))
                || !$this->allows($request, $name)
            ) {
                continue;
            }
            $user = $channelUser;
            if ($id !== null) {
                $conversations[] = $id;
            }
        }
        $token = $user === null ? false : $this->client->token(self::identifier($user), conversations: $conversations);
        if ($token === false) {
            throw new AccessDeniedHttpException();
        }

        return ['token' => $token];
    }

    /**
     * Returns what the channel's callback returned: true, or the data of a presence channel.
     *
     * @param \Illuminate\Http\Request $request
     * @param mixed $result
     * @return mixed
     */
    public function validAuthenticationResponse($request, $result)
    {
        return $result;
    }

    /**
     * @param array<int, \Stringable|string> $channels
     * @param string $event
     * @param array<string, mixed> $payload
     * @return void
     */
    public function broadcast(array $channels, $event, array $payload = [])
    {
        unset($payload['socket']); // the id of the sender's connection, which chatws does not have
        $audiences = [];
        $users = [];
        foreach ($channels as $channel) {
            // Send an unknown channel too: the server rejects it, and the rejection is logged.
            $audience = Channels::audience((string) $channel) ?? ['channel' => (string) $channel];
            if (\is_array($audience) && isset($audience['user_id'])) {
                $users[] = $audience['user_id'];
            } else {
                $audiences[] = $audience;
            }
        }
        if ($users !== []) {
            $audiences[] = ['user_ids' => $users];
        }
        $this->client->batch(static function (Client $client) use ($audiences, $event, $payload): void {
            foreach ($audiences as $audience) {
                $client->publish(Channels::event($event), $payload, $audience);
            }
        });
    }

    /**
     * @param \Illuminate\Http\Request $request
     * @return list<string>|null without Laravel's prefixes, as in Broadcast::channel(); null: none is named
     */
    private static function channelNames($request): ?array
    {
        $input = $request->input('channel_name');
        if ($input === null || $input === '' || $input === []) {
            return null;
        }
        $names = array_filter(\is_array($input) ? $input : [$input], 'is_string');

        return array_values(array_unique(array_map(Channels::withoutPrefix(...), $names)));
    }

    /** Whether the server accepts the id. One invalid id makes the whole token invalid. */
    private static function isId(string $id): bool
    {
        return preg_match('/^.{1,128}$/Dsu', $id) === 1;
    }

    /** Whether the application has a channel callback for conversations. */
    private function hasConversationCallback(): bool
    {
        foreach (array_keys($this->channels) as $pattern) {
            foreach (['conversation.1', 'conversations.1'] as $name) {
                if ($this->channelNameMatchesPattern($name, $pattern)) {
                    return true;
                }
            }
        }

        return false;
    }

    /**
     * Calls the channel's callback. A missing model or `abort(403)` denies this channel only. Other exceptions are
     * errors of the application and propagate.
     *
     * @param \Illuminate\Http\Request $request
     */
    private function allows($request, string $name): bool
    {
        try {
            $this->verifyUserCanAccessChannel($request, $name);

            return true;
        } catch (AuthorizationException | ModelNotFoundException) {
            return false;
        } catch (HttpExceptionInterface $error) {
            return \in_array($error->getStatusCode(), [401, 403, 404], true) ? false : throw $error;
        }
    }

    /** Whether two guards found the same user. Id 5 in the table of another guard is another user. */
    private static function isSame(object $user, object $other): bool
    {
        return ($user instanceof $other || $other instanceof $user)
            && (string) self::identifier($user) === (string) self::identifier($other);
    }

    private static function identifier(object $user): int|string
    {
        $id = method_exists($user, 'getAuthIdentifierForBroadcasting')
            ? $user->getAuthIdentifierForBroadcasting()
            : $user->getAuthIdentifier();

        return \is_int($id) ? $id : (string) $id; // the key may be an object, such as a UUID
    }
}
