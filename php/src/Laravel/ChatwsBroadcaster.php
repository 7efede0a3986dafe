<?php

declare(strict_types=1);

namespace Chatws\Laravel;

use Chatws\Client;
use Illuminate\Broadcasting\Broadcasters\Broadcaster;
use Symfony\Component\HttpKernel\Exception\AccessDeniedHttpException;

/**
 * A Laravel broadcast connection with the driver `chatws`; README.md says how it is registered.
 *
 * It never throws a BroadcastException: what could not be delivered is logged and spooled (Chatws\Client), and a queue
 * that ran the job again would only send it twice.
 */
final class ChatwsBroadcaster extends Broadcaster
{
    public function __construct(private readonly Client $client)
    {
    }

    /**
     * `POST /broadcasting/auth`: chatws has no authorization by channel, but a ticket for whoever is logged in.
     *
     * @param \Illuminate\Http\Request $request
     * @return array{token: string}
     */
    public function auth($request)
    {
        $user = $request->user();
        $token = $user === null ? false : $this->client->ticket($user->getAuthIdentifier());
        if ($token === false) {
            throw new AccessDeniedHttpException();
        }

        return ['token' => $token];
    }

    /**
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
        unset($payload['socket']); // the sender's connection, of a service that numbers them
        $audiences = [];
        $users = [];
        foreach ($channels as $channel) {
            // A channel that is none of ours is sent all the same: the refusal then stands in the log.
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
}
