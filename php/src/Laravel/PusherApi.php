<?php

declare(strict_types=1);

namespace Chatws\Laravel;

use Chatws\Json;

/**
 * The signed HTTP API and the signatures of Pusher's protocol, for one app of the chatws server.
 *
 * @internal
 */
final class PusherApi
{
    /** Channels of one request, as Pusher's API allows. */
    private const MAX_CHANNELS = 100;

    /**
     * @param string $url the server's address, such as `http://127.0.0.1:8080`, with the prefix of a proxy if any
     * @param float $timeout seconds for each request
     */
    public function __construct(
        private readonly string $url,
        private readonly string $appId,
        private readonly string $key,
        #[\SensitiveParameter]
        private readonly string $secret,
        private readonly float $timeout = 5.0,
    ) {
    }

    /** Returns `auth` for a subscription or, with the text `socket::user::data`, for a sign-in. */
    public function sign(string $text): string
    {
        return $this->key . ':' . hash_hmac('sha256', $text, $this->secret);
    }

    /**
     * Publishes an event to channels.
     *
     * @param list<string> $channels
     * @param array<string, mixed> $payload
     * @param string|null $socketId the connection that does not get the event
     * @throws \RuntimeException the server did not accept it
     * @throws \JsonException
     */
    public function trigger(array $channels, string $event, array $payload, ?string $socketId): void
    {
        $fields = ['name' => $event, 'data' => Json::encode($payload === [] ? new \stdClass() : $payload)];
        if ($socketId !== null) {
            $fields['socket_id'] = $socketId;
        }
        foreach (array_chunk($channels, self::MAX_CHANNELS) as $chunk) {
            $this->post('/events', Json::encode($fields + ['channels' => $chunk]));
        }
    }

    private function post(string $path, string $body): void
    {
        $path = "/apps/{$this->appId}{$path}";
        // The names are in alphabetical order, as the signature demands.
        $query = [
            'auth_key' => $this->key,
            'auth_timestamp' => (string) time(),
            'auth_version' => '1.0',
            'body_md5' => md5($body),
        ];
        $signed = implode('&', array_map(fn (string $name): string => "{$name}={$query[$name]}", array_keys($query)));
        $query['auth_signature'] = hash_hmac('sha256', "POST\n{$path}\n{$signed}", $this->secret);
        $context = stream_context_create(['http' => [
            'method' => 'POST',
            'header' => "Content-Type: application/json\r\nConnection: close",
            'content' => $body,
            'timeout' => $this->timeout,
            'ignore_errors' => true,
            'follow_location' => 0,
        ]]);
        $http_response_header = [];
        $answer = @file_get_contents(rtrim($this->url, '/') . $path . '?' . http_build_query($query), false, $context);
        $status = preg_match('/^HTTP\/\S+ (\d{3})/', $http_response_header[0] ?? '', $match) === 1 ? (int) $match[1] : 0;
        if ($answer === false || $status === 0) {
            $reason = $answer === false ? (error_get_last()['message'] ?? 'unknown error') : 'no HTTP response';
            // The warning of PHP contains the address with its signature.
            throw new \RuntimeException("chatws is unreachable at {$this->url}: " . preg_replace('/^.*?\): /', '', $reason));
        }
        if ($status !== 200) {
            throw new \RuntimeException("chatws rejected the event with status {$status}: " . substr(trim($answer), 0, 500));
        }
    }
}
