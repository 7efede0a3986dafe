<?php

declare(strict_types=1);

namespace Chatws\Laravel;

use Chatws\Client;
use Chatws\Json;
use Illuminate\Auth\Access\AuthorizationException;
use Illuminate\Broadcasting\BroadcastException;
use Illuminate\Broadcasting\Broadcasters\Broadcaster;
use Illuminate\Database\Eloquent\ModelNotFoundException;
use Symfony\Component\HttpKernel\Exception\AccessDeniedHttpException;
use Symfony\Component\HttpKernel\Exception\HttpExceptionInterface;

/**
 * A Laravel broadcast connection with the driver `chatws`. ChatwsServiceProvider registers it.
 *
 * Without a Pusher app it publishes by the push API and never throws a BroadcastException. Chatws\Client logs and spools
 * undelivered events, so a queue that retries the job would deliver them twice.
 *
 * With a Pusher app it publishes by the signed HTTP API, which nothing spools: a failure throws, and the queue retries.
 * The server's bridge brings events of `private-conversation.456` to pages with chatws's own client library.
 */
final class ChatwsBroadcaster extends Broadcaster
{
    public function __construct(private readonly Client $client, private readonly ?PusherApi $pusher = null)
    {
    }

    /**
     * Answers `POST /broadcasting/auth`. Echo and pusher-js send a `socket_id` and get a signature. Other requests get
     * a token.
     *
     * @param \Illuminate\Http\Request $request
     * @return array<string, string>
     * @throws AccessDeniedHttpException
     */
    public function auth($request)
    {
        return $this->pusher !== null && $request->input('socket_id') !== null
            ? $this->signature($request, $this->pusher)
            : $this->token($request);
    }

    /**
     * Answers a `POST /broadcasting/auth` of Echo: `auth`, and for a presence channel `channel_data`.
     *
     * @param \Illuminate\Http\Request $request
     * @return array<string, string>
     * @throws AccessDeniedHttpException
     */
    private function signature($request, PusherApi $pusher): array
    {
        $socketId = $request->input('socket_id');
        $channel = $request->input('channel_name');
        // A colon in either would make the signature valid for another text.
        if (!self::isSocketId($socketId) || !self::isGuarded($channel)) {
            throw new AccessDeniedHttpException();
        }
        $name = Channels::withoutPrefix($channel);
        $user = $this->retrieveUser($request, $name);
        if ($user === null) {
            throw new AccessDeniedHttpException();
        }
        $result = $this->verifyUserCanAccessChannel($request, $name);
        if (!str_starts_with($channel, 'presence-')) {
            return ['auth' => $pusher->sign("{$socketId}:{$channel}")];
        }
        // pusher-js and the server compare member ids as strings
        $data = Json::encode(['user_id' => (string) self::identifier($user), 'user_info' => $result]);

        return ['auth' => $pusher->sign("{$socketId}:{$channel}:{$data}"), 'channel_data' => $data];
    }

    /**
     * Answers `POST /broadcasting/user-auth`, the sign-in of pusher-js. Laravel calls it from version 9 on.
     *
     * @param \Illuminate\Http\Request $request
     * @return array<string, string>|null null: the application has no user for the request
     */
    public function resolveAuthenticatedUser($request)
    {
        $user = parent::resolveAuthenticatedUser($request);
        $socketId = $request->input('socket_id');
        if (!$user || $this->pusher === null || !self::isSocketId($socketId)) {
            return null;
        }
        $data = Json::encode(['id' => (string) ($user['id'] ?? '')] + $user);

        return ['auth' => $this->pusher->sign("{$socketId}::user::{$data}"), 'user_data' => $data];
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
    private function token($request): array
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
     * @throws BroadcastException the signed HTTP API did not accept the event
     */
    public function broadcast(array $channels, $event, array $payload = [])
    {
        $socket = $payload['socket'] ?? null; // of toOthers(): the id of the sender's connection
        unset($payload['socket']);
        if ($this->pusher !== null) {
            $this->trigger($this->pusher, $channels, $event, $payload, \is_string($socket) ? $socket : null);

            return;
        }
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
     * @param array<int, \Stringable|string> $channels
     * @param array<string, mixed> $payload
     * @throws BroadcastException
     */
    private function trigger(PusherApi $pusher, array $channels, string $event, array $payload, ?string $socket): void
    {
        $names = array_values(array_unique(array_map('strval', $channels)));
        foreach ($names as $name) {
            if (str_starts_with($name, 'private-encrypted-')) {
                throw new BroadcastException(
                    "the driver chatws cannot encrypt for {$name}: use Laravel's driver pusher for encrypted channels",
                );
            }
        }
        try {
            $pusher->trigger($names, $event, $payload, $socket);
        } catch (\RuntimeException | \JsonException $error) {
            throw new BroadcastException($error->getMessage(), 0, $error);
        }
    }

    /**
     * A parameter matches no dot, unlike in Laravel 8. `conversation.{id}` does not grant `conversation.456.agents`.
     *
     * @param string $channel
     * @param string $pattern
     * @return bool
     */
    protected function channelNameMatchesPattern($channel, $pattern)
    {
        $expression = '';
        foreach (preg_split('/(\{.*?\}|\*)/', $pattern, -1, PREG_SPLIT_DELIM_CAPTURE) ?: [] as $part) {
            $expression .= match (true) {
                $part === '*' => '.*',
                str_starts_with($part, '{') => '[^.]+',
                default => preg_quote($part, '/'),
            };
        }

        return preg_match("/^{$expression}$/Dsu", $channel) === 1;
    }

    private static function isSocketId(mixed $value): bool
    {
        return \is_string($value) && preg_match('/^\d+\.\d+$/D', $value) === 1;
    }

    /** Whether a channel needs a signature that this driver can make. Encrypted channels also need their key. */
    private static function isGuarded(mixed $channel): bool
    {
        return \is_string($channel)
            && preg_match('/^(private|presence)-[A-Za-z0-9_\-=@,.;]+$/D', $channel) === 1
            && !str_starts_with($channel, 'private-encrypted-');
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
