<?php

declare(strict_types=1);

namespace App\Helpers;

use Chatws\Client;
use Chatws\Config;

/**
 * The static helper of existing applications, with the same name and signatures, based on Chatws\Client.
 *
 * Copy it over the old app/Helpers/WebSocket.php. No call has to change. Settings come from the environment
 * (CHATWS_PUSH_ADDRESS and others, see README.md) or from configure(). As in Chatws\Client, no method throws, all calls
 * together have a time budget, and a method that fails logs the reason and returns false.
 */
final class WebSocket
{
    private static ?Client $client = null;

    /**
     * Replaces the settings of the environment.
     *
     * @param Client|Config|array<string, mixed> $settings an array is passed to Chatws\Config::fromEnv()
     */
    public static function configure(Client|Config|array $settings): void
    {
        $settings = \is_array($settings) ? Config::fromEnv($settings) : $settings;
        self::$client = $settings instanceof Config ? new Client($settings) : $settings;
    }

    /** Returns the client of this process, for batches, keys, and everything without a method here. */
    public static function client(): Client
    {
        return self::$client ??= new Client();
    }

    /** @param array<string, mixed> $message */
    public static function notifyNewMessage(int $conversationId, array $message): bool
    {
        return self::client()->notifyNewMessage($conversationId, $message);
    }

    /** @param array<string, mixed> $conversation */
    public static function notifyConversationUpdated(int $conversationId, array $conversation): bool
    {
        return self::client()->notifyConversationUpdated($conversationId, $conversation);
    }

    /** @param array<string, mixed> $conversation */
    public static function notifyNewConversation(array $conversation): bool
    {
        return self::client()->notifyNewConversation($conversation);
    }

    public static function notifyAgentStatus(int $agentId, string $status): bool
    {
        return self::client()->notifyAgentStatus($agentId, $status);
    }

    public static function notifyTyping(int $conversationId, int $userId, bool $isTyping): bool
    {
        return self::client()->notifyTyping($conversationId, $userId, $isTyping);
    }

    public static function notifyMessageRead(int $conversationId, int $messageId, int $userId): bool
    {
        return self::client()->notifyMessageRead($conversationId, $messageId, $userId);
    }

    public static function notifyMessageStatusUpdated(int $conversationId, int $messageId, string $status): bool
    {
        return self::client()->notifyMessageStatusUpdated($conversationId, $messageId, $status);
    }

    /** @param array<array-key, mixed> $data */
    public static function notifyUser(int $userId, string $event, array $data): bool
    {
        return self::client()->notifyUser($userId, $event, $data);
    }

    /**
     * @param array<array-key, mixed> $data
     * @param array<array-key, mixed>|null $targets null: everyone; a list: user ids; see Chatws\Client::broadcast()
     */
    public static function broadcast(string $event, array $data, ?array $targets = null): bool
    {
        return self::client()->broadcast($event, $data, $targets);
    }

    public static function disconnectUser(int $userId, string $reason = '', bool $ban = false): bool
    {
        return self::client()->disconnectUser($userId, $reason, $ban);
    }

    public static function unsubscribeUser(int $userId, int $conversationId): bool
    {
        return self::client()->unsubscribeUser($userId, $conversationId);
    }

    /** @return list<int|string> */
    public static function onlineAgents(): array
    {
        return self::client()->onlineAgents();
    }

    /** @param list<int|string>|null $conversations */
    public static function token(int $userId, int $ttl = 300, ?array $conversations = null): string|false
    {
        return self::client()->token($userId, $ttl, $conversations);
    }
}
