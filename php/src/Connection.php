<?php

declare(strict_types=1);

namespace Chatws;

/**
 * One connection to the push API. It sends lines and reads one response per line, in the same order.
 *
 * No method blocks past its deadline, with one exception: the system's resolver has no timeout for a host name.
 *
 * @internal
 */
final class Connection
{
    /** Bytes of one read or write, about the size of a socket buffer. */
    private const CHUNK_BYTES = 65536;
    /** Bytes of unread responses. The longest response lists the online agents, far below this limit. */
    private const MAX_RESPONSE_BYTES = 16 * 1024 * 1024;
    /**
     * Milliseconds between two attempts on a stream that stream_select() does not support. The pause doubles each time:
     * it starts below the response time of a local server and ends at 200 attempts per second.
     */
    private const MIN_POLL_PAUSE_MS = 0.1;
    private const MAX_POLL_PAUSE_MS = 5.0;

    /** @var resource|null */
    private $stream = null;
    /** The process that opened the connection: a forked child must not use its parent's. */
    private int $processId = 0;
    private string $buffer = '';
    /** Whether stream_select() supports the stream. */
    private bool $isSelectable = true;
    /** Milliseconds before the next attempt on a stream that is not selectable; 0 after progress. */
    private float $pollPause = 0.0;
    /** The address of the current or last connection. */
    private string $address = '';

    public function __construct(private readonly Config $config, private readonly AddressList $addresses)
    {
    }

    public function __destruct()
    {
        $this->close();
    }

    /**
     * Sends lines as one batch and reads the responses.
     *
     * @param list<Line> $lines
     * @param float $timeout milliseconds without progress, if shorter than the timeouts of the settings
     * @return array{array<int, array<string, mixed>>, ConnectionFailed|null} line index => response; and the reason
     *     if responses are missing
     */
    public function exchange(array $lines, Deadline $deadline, float $timeout = \INF): array
    {
        $responses = [];
        try {
            ErrorSuppressor::call(function () use ($lines, $deadline, $timeout, &$responses): void {
                $isNew = $this->open($deadline->orAfter(min($timeout, $this->config->connectTimeoutMs)));
                $skip = 0;
                if ($isNew && $this->config->secret !== null) {
                    array_unshift($lines, Line::operation('auth', ['secret' => $this->config->secret]));
                    $skip = 1;
                }
                $timeout = min($timeout, $this->config->answerTimeoutMs);
                $this->transfer($lines, $skip, $deadline, $timeout, $responses);
            });
        } catch (ConnectionFailed $failure) {
            $this->close();

            return [$responses, $this->addresses->hasAlternatives() ? $failure->withAddress($this->address) : $failure];
        } catch (\Throwable $error) {
            $this->close();

            return [$responses, new ConnectionFailed($error->getMessage(), false, false)];
        }

        return [$responses, null];
    }

    /** Keeps the current address for the next exchanges: its last one succeeded. */
    public function markWorked(): void
    {
        $this->addresses->markWorked($this->address);
    }

    /** Closes the connection and moves on to the next address, if there are several. */
    public function markFailed(): void
    {
        $this->close();
        $this->addresses->markFailed($this->address);
    }

    /** Closes the connection. The next exchange opens another. */
    public function close(): void
    {
        $stream = $this->stream;
        $this->stream = null;
        $this->buffer = '';
        if (\is_resource($stream)) {
            ErrorSuppressor::call(static fn (): bool => fclose($stream));
        }
    }

    /**
     * Writes the lines and reads their responses.
     *
     * @param list<Line> $lines
     * @param int $skip number of leading lines whose responses are dropped: this class has added them
     * @param float $timeout milliseconds without any progress
     * @param array<int, array<string, mixed>> $responses
     * @throws ConnectionFailed
     */
    private function transfer(array $lines, int $skip, Deadline $deadline, float $timeout, array &$responses): void
    {
        $output = implode('', array_map(static fn (Line $line): string => "{$line->json}\n", $lines));
        $sent = 0;
        $size = \strlen($output);
        $count = \count($lines);
        $next = 0;
        $progressDeadline = $deadline->orAfter($timeout);
        $this->pollPause = 0.0;
        while ($next < $count) {
            [$isReadable, $isWritable] = $this->wait($sent < $size, $progressDeadline);
            $hasProgress = false;
            if ($isWritable) {
                // Write before reading: if the write fails, the server's last response can still be read.
                $written = fwrite($this->stream, substr($output, $sent, self::CHUNK_BYTES));
                if ($written === false) {
                    $sent = $size;
                    $isReadable = true;
                } else {
                    $sent += $written;
                    $hasProgress = $written > 0;
                }
            }
            if ($isReadable) {
                $isOpen = $this->read();
                foreach ($this->takeLines() as $text) {
                    $response = $this->parse($text, $lines[$next]->id ?? null);
                    if ($next >= $skip) {
                        $responses[$next - $skip] = $response;
                    }
                    ++$next;
                    $hasProgress = true;
                }
                if (!$isOpen && $next < $count) {
                    throw new ConnectionFailed('the server closed the connection', true);
                }
            }
            if ($hasProgress) {
                $progressDeadline = $deadline->orAfter($timeout);
                $this->pollPause = 0.0;
            }
        }
    }

    /**
     * @param string|null $id of the line whose response is due; null: no response is due
     * @return array<string, mixed>
     * @throws ConnectionFailed
     */
    private function parse(string $text, ?string $id): array
    {
        $response = json_decode($text, true);
        if (!\is_array($response) || !\is_bool($response['ok'] ?? null)) {
            throw new ConnectionFailed('the program at this address is not the push API of chatws', false);
        }
        if (($response['code'] ?? null) === 'bad_secret') {
            throw new ConnectionFailed('the push secret is wrong or missing', false, false);
        }
        // The server cannot echo an id if it could not parse the line.
        $echo = $response['id'] ?? ($response['ok'] ? null : $id);
        if ($id === null || ($echo !== $id && !(\is_int($echo) && (string) $echo === $id))) {
            throw new ConnectionFailed('the response does not belong to the line that was sent', false);
        }

        return $response;
    }

    /**
     * Waits until the stream is ready.
     *
     * @return array{bool, bool} whether the stream is readable, and writable
     * @throws ConnectionFailed
     */
    private function wait(bool $forWriting, Deadline $deadline): array
    {
        do {
            $remaining = $deadline->remaining();
            if (!$this->isSelectable) {
                if ($remaining <= 0) {
                    break;
                }
                // The stream does not block, so the caller may try both directions.
                Deadline::sleep(min($this->pollPause, $remaining));
                $this->pollPause = min(max(2 * $this->pollPause, self::MIN_POLL_PAUSE_MS), self::MAX_POLL_PAUSE_MS);

                return [true, $forWriting];
            }
            $read = [$this->stream];
            $write = $forWriting ? [$this->stream] : [];
            $except = null;
            // False means that a signal interrupted the call: a worker may have signal handlers.
            $ready = stream_select(
                $read,
                $write,
                $except,
                (int) ($remaining / 1000),
                (int) (fmod($remaining, 1000) * 1000),
            );
            if ($ready) {
                return [$read !== [], $write !== []];
            }
        } while ($remaining > 0);
        throw new ConnectionFailed('no answer in time', false);
    }

    /** Reads the available bytes. Returns false at the end of the stream. */
    private function read(): bool
    {
        do {
            $chunk = fread($this->stream, self::CHUNK_BYTES);
            if ($chunk === false || $chunk === '') {
                return !feof($this->stream);
            }
            $this->buffer .= $chunk;
        } while (\strlen($this->buffer) < self::MAX_RESPONSE_BYTES);
        throw new ConnectionFailed('the response is longer than 16 MiB', false);
    }

    /** @return list<string> the complete lines in the buffer */
    private function takeLines(): array
    {
        $end = strrpos($this->buffer, "\n");
        if ($end === false) {
            return [];
        }
        $lines = explode("\n", substr($this->buffer, 0, $end));
        $this->buffer = substr($this->buffer, $end + 1);

        return $lines;
    }

    /**
     * Opens the connection unless there is a usable one. Returns true if it is new.
     *
     * @param Deadline $deadline for connecting
     * @throws ConnectionFailed
     */
    private function open(Deadline $deadline): bool
    {
        if ($this->stream !== null) {
            // Between two exchanges the server sends nothing: data or the end of the stream make it unusable.
            if ($this->processId === self::currentProcessId() && $this->read() && $this->buffer === '') {
                return false;
            }
            $this->close();
        }
        foreach ($this->addresses->all as $address) {
            $this->parseAddress($address); // report an invalid address at once, not when it is needed
        }
        $this->address = $this->addresses->current();
        [$target, $tlsName] = $this->parseAddress($this->address);
        $this->stream = $this->connect($target, $tlsName, $deadline);
        $this->processId = self::currentProcessId();
        $this->buffer = '';
        $this->isSelectable = $this->supportsSelect();
        $this->pollPause = 0.0;
        if ($tlsName !== null) {
            $this->startTls($deadline);
        }

        return true;
    }

    /**
     * @return resource a stream that does not block
     * @throws ConnectionFailed
     */
    private function connect(string $target, ?string $tlsName, Deadline $deadline)
    {
        $context = stream_context_create(['socket' => ['tcp_nodelay' => true], 'ssl' => $this->tlsOptions($tlsName)]);
        $errorNumber = 0;
        $reason = '';
        $seconds = max(0.001, $deadline->remaining() / 1000);
        $stream = stream_socket_client($target, $errorNumber, $reason, $seconds, \STREAM_CLIENT_CONNECT, $context);
        if ($stream === false) {
            $reason = $reason ?: ErrorSuppressor::$warning;
            // PHP drops the error of socket(2). Opening a file shows whether the process has too many files open.
            if ($errorNumber === 0 && fopen(__FILE__, 'r') === false) {
                $reason = preg_replace('/^.*Failed to open stream: /', '', ErrorSuppressor::$warning);
            }
            throw new ConnectionFailed("{$reason} ({$this->address})", $deadline->remaining() > 0);
        }
        stream_set_blocking($stream, false);

        return $stream;
    }

    /** Returns 0 if php.ini disables getmypid(): such a process does not fork. */
    private static function currentProcessId(): int
    {
        return \function_exists('getmypid') ? (int) getmypid() : 0;
    }

    /** @throws ConnectionFailed */
    private function startTls(Deadline $deadline): void
    {
        while (true) {
            $done = stream_socket_enable_crypto($this->stream, true, \STREAM_CRYPTO_METHOD_TLS_CLIENT);
            if ($done === true) {
                return;
            }
            if ($done === false) {
                $reason = ErrorSuppressor::$warning ?: 'the server closed the connection';
                throw new ConnectionFailed("TLS: {$reason}", false);
            }
            $this->wait(false, $deadline);
        }
    }

    /**
     * Whether stream_select() supports the stream. PHP calls select(2), whose fd_set has no bit for a descriptor of
     * 1,024 or more (FD_SETSIZE). php.ini may also disable the function.
     */
    private function supportsSelect(): bool
    {
        if (!\function_exists('stream_select')) {
            return false;
        }
        $read = [$this->stream];
        $write = $except = null;
        ErrorSuppressor::$warning = '';
        stream_select($read, $write, $except, 0);
        $warning = ErrorSuppressor::$warning;
        ErrorSuppressor::$warning = '';

        return !str_contains($warning, 'FD_SETSIZE');
    }

    /**
     * @return array{string, string|null} the target for stream_socket_client(); the name in the certificate, if TLS
     * @throws ConnectionFailed
     */
    private function parseAddress(string $address): array
    {
        if (preg_match('~^unix:(?://)?(/.+)$~', $address, $match)) {
            return ["unix://{$match[1]}", null];
        }
        if (preg_match('~^(?:(tcp|tls)://)?(\[[0-9A-Fa-f:.]+\]|[^:/\[\]]+):(\d{1,5})$~', $address, $match)) {
            $tlsName = $match[1] === 'tls' ? $this->config->tlsName ?? trim($match[2], '[]') : null;

            return ["tcp://{$match[2]}:{$match[3]}", $tlsName];
        }
        $forms = 'HOST:PORT, tls://HOST:PORT or unix:/PATH';
        throw new ConnectionFailed("invalid address \"{$address}\", expected {$forms}", false, false);
    }

    /** @return array<string, mixed> */
    private function tlsOptions(?string $name): array
    {
        $options = ['verify_peer' => true, 'verify_peer_name' => true, 'SNI_enabled' => true];
        if ($name !== null) {
            $options['peer_name'] = $name;
        }
        if ($this->config->tlsCa !== null) {
            $options['cafile'] = $this->config->tlsCa;
        }

        return $options;
    }
}
