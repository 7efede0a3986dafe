-- The queue of webhooks (Broker.add_webhooks, Broker.exchange_webhooks), and leases that append to it.
-- Programs that know migration 4 or a later one can work with it.

CREATE TABLE chatws.webhooks (
    id integer PRIMARY KEY CHECK (id = 1),
    -- part of the ids of its events
    name text NOT NULL DEFAULT substr(md5(random()::text), 1, 8),
    epoch text NOT NULL DEFAULT '',
    owner text NOT NULL DEFAULT '',
    until double precision NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0,
    queued bigint NOT NULL DEFAULT 0,
    resets bigint NOT NULL DEFAULT 1,
    resets_done bigint NOT NULL DEFAULT 0,
    -- by priority
    dropped bigint[] NOT NULL DEFAULT '{0,0,0}'
);
COMMENT ON TABLE chatws.webhooks IS 'The queue of webhooks: which node sends, until when, and what it has to know.';
INSERT INTO chatws.webhooks (id) VALUES (1);

CREATE TABLE chatws.webhook_events (
    position bigint PRIMARY KEY,
    priority smallint NOT NULL,
    time_ms bigint NOT NULL,
    kind text NOT NULL,
    -- JSON, or for an agent the user_key
    data text NOT NULL
);
CREATE INDEX webhook_events_by_priority ON chatws.webhook_events (priority, position);

-- Append events. The row of chatws.webhooks is locked until the commit, so events become visible in their order.
CREATE FUNCTION chatws._add_webhooks(p_kinds text[], p_data text[], p_limit bigint, p_now double precision)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_queue chatws.webhooks;
    v_dropped bigint[];
    v_count integer := coalesce(cardinality(p_kinds), 0);
BEGIN
    SELECT * INTO v_queue FROM chatws.webhooks WHERE id = 1 FOR UPDATE;
    INSERT INTO chatws.webhook_events (position, priority, time_ms, kind, data)
        SELECT v_queue.position + n,
            CASE kind WHEN 'activity' THEN 0 WHEN 'contact_online' THEN 1 WHEN 'contact_offline' THEN 1 ELSE 2 END,
            floor(p_now * 1000)::bigint, kind, data
        FROM unnest(p_kinds, p_data) WITH ORDINALITY AS one (kind, data, n);
    UPDATE chatws.webhooks SET position = position + v_count, queued = queued + v_count WHERE id = 1;
    IF v_queue.queued + v_count > p_limit THEN
        WITH gone AS (
            DELETE FROM chatws.webhook_events e USING (
                SELECT position FROM chatws.webhook_events ORDER BY priority, position
                LIMIT v_queue.queued + v_count - p_limit) oldest
            WHERE e.position = oldest.position RETURNING e.priority)
        SELECT ARRAY[count(*) FILTER (WHERE priority = 0), count(*) FILTER (WHERE priority = 1),
            count(*) FILTER (WHERE priority = 2)] INTO v_dropped FROM gone;
        UPDATE chatws.webhooks SET resets = resets + 1,
            queued = queued - v_dropped[1] - v_dropped[2] - v_dropped[3],
            dropped = ARRAY[dropped[1] + v_dropped[1], dropped[2] + v_dropped[2], dropped[3] + v_dropped[3]]
        WHERE id = 1;
    END IF;
END
$$;

-- See Broker.add_webhooks.
--   p_webhooks  [[kind, data]]
CREATE FUNCTION chatws.add_webhooks(p_webhooks json, p_reset boolean, p_limit bigint, p_now double precision)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM chatws._require_read_committed();
    PERFORM chatws._add_webhooks(
        ARRAY(SELECT one ->> 0 FROM json_array_elements(p_webhooks) WITH ORDINALITY AS w (one, n) ORDER BY n),
        ARRAY(SELECT one ->> 1 FROM json_array_elements(p_webhooks) WITH ORDINALITY AS w (one, n) ORDER BY n),
        p_limit, coalesce(p_now, extract(epoch FROM clock_timestamp())));
    IF p_reset THEN
        UPDATE chatws.webhooks SET resets = resets + 1 WHERE id = 1;
    END IF;
END
$$;

-- chatws.renew_leases, whose changes are appended to the queue.
CREATE FUNCTION chatws.renew_leases_with_webhooks(
    p_node text, p_connections json, p_seconds double precision, p_now double precision, p_limit bigint
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_reply text := chatws.renew_leases(p_node, p_connections, p_seconds, p_now);
    v_joined text[] := ARRAY(SELECT json_array_elements_text(v_reply::json -> 'joined'));
    v_left text[] := ARRAY(SELECT json_array_elements_text(v_reply::json -> 'left'));
BEGIN
    IF cardinality(v_joined) + cardinality(v_left) > 0 THEN
        PERFORM chatws._add_webhooks(
            array_fill('agent_online'::text, ARRAY[cardinality(v_joined)])
                || array_fill('agent_offline'::text, ARRAY[cardinality(v_left)]),
            v_joined || v_left, p_limit, coalesce(p_now, extract(epoch FROM clock_timestamp())));
    END IF;
    RETURN v_reply;
END
$$;

-- See Broker.exchange_webhooks. Returns NULL if another node is the sender.
CREATE FUNCTION chatws.exchange_webhooks(
    p_owner text, p_seconds double precision, p_name text, p_acked bigint, p_after bigint, p_limit bigint,
    p_reset_done bigint, p_numbers bigint, p_epoch text, p_now double precision
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision;
    v_queue chatws.webhooks;
    v_known boolean;
    v_acked bigint := 0;
    v_first bigint;
BEGIN
    PERFORM chatws._require_read_committed();
    SELECT * INTO v_queue FROM chatws.webhooks WHERE id = 1 FOR UPDATE;
    v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    IF v_queue.epoch <> p_epoch THEN
        v_queue.name := substr(md5(random()::text), 1, 8);
        UPDATE chatws.webhooks SET epoch = p_epoch, name = v_queue.name,
            resets = resets + CASE WHEN v_queue.epoch = '' THEN 0 ELSE 1 END WHERE id = 1;
    END IF;
    v_known := p_name = v_queue.name;
    IF v_known AND p_acked > 0 THEN
        DELETE FROM chatws.webhook_events WHERE position <= p_acked;
        GET DIAGNOSTICS v_acked = ROW_COUNT;
    END IF;
    IF v_acked > 0 OR p_reset_done > v_queue.resets_done THEN
        UPDATE chatws.webhooks SET queued = queued - v_acked, resets_done = greatest(resets_done, p_reset_done)
        WHERE id = 1;
    END IF;
    IF v_queue.owner NOT IN ('', p_owner) AND v_queue.until > v_now THEN
        RETURN NULL;
    ELSIF p_seconds = 0 THEN
        UPDATE chatws.webhooks SET owner = '' WHERE id = 1;
        RETURN NULL;
    END IF;
    v_first := greatest(v_queue.seq + 1, floor(v_now * 1000000)::bigint);
    UPDATE chatws.webhooks SET owner = p_owner, until = v_now + p_seconds, seq = v_first + p_numbers - 1
    WHERE id = 1 RETURNING * INTO v_queue;
    RETURN json_build_object(
        'name', v_queue.name, 'first', v_first, 'queued', v_queue.queued, 'dropped', v_queue.dropped,
        'last', v_queue.position,
        'reset', CASE WHEN v_queue.resets > v_queue.resets_done THEN v_queue.resets ELSE 0 END,
        'items', (SELECT coalesce(json_agg(json_build_array(e.position, e.time_ms, e.kind, e.data) ORDER BY e.position), '[]')
            FROM (SELECT * FROM chatws.webhook_events WHERE position > CASE WHEN v_known THEN p_after ELSE 0 END
                  ORDER BY position LIMIT p_limit + 1) e));
END
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA chatws FROM PUBLIC;
